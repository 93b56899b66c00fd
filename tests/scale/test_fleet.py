"""The arithmetic of a fleet."""

from __future__ import annotations

import math

import pytest

from geosam_stac.errors import UsageError
from geosam_stac.planning import Plan
from geosam_stac.scale.fleet import estimate


def _plan(chips: int) -> Plan:
    return Plan(
        scene="scene",
        bands=("red",),
        crs="EPSG:32633",
        resolution=10.0,
        unit="m",
        width=1,
        height=1,
        rows=1,
        cols=chips,
        chips=chips,
        chips_outside=0,
        chip_px=1024,
        stride_px=512,
        bytes_to_read=chips * 1_000_000,
        objects=chips + 4,
        bytes_to_write=chips * 8_000_000,
        model="sam2.1-hiera-tiny",
        device="cpu",
        precision="fp32",
        estimated_seconds=None,
    )


def test_time_and_hours():
    fleet = estimate(
        [_plan(600), _plan(400)], workers=4, rate=2.0, rate_source="given", price=3.0, start_s=60
    )
    assert (fleet.scenes, fleet.chips, fleet.objects) == (2, 1000, 1008)
    assert fleet.hours == pytest.approx((250 / 2 + 60) / 3600)
    assert fleet.worker_hours == pytest.approx((1000 / 2 + 4 * 60) / 3600)
    assert fleet.cost == pytest.approx(3 * fleet.worker_hours)
    assert fleet.read_mb_s == pytest.approx(2.0)
    assert fleet.write_mb_s == pytest.approx(16.0)


def test_more_workers_than_chips_cost_no_more():
    few, many = (
        estimate([_plan(3)], workers=count, rate=1.0, rate_source="given") for count in (3, 300)
    )
    assert (many.hours, many.worker_hours) == (few.hours, few.worker_hours)


def test_nothing_to_do_takes_no_time():
    fleet = estimate([_plan(0)], workers=2, rate=1.0, rate_source="given", price=1.0)
    assert (fleet.hours, fleet.worker_hours, fleet.cost) == (0, 0, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"workers": 0}, "--fleet"), ({"rate": 0.0}, "--rate"), ({"rate": math.nan}, "--rate")],
)
def test_refused(options, said):
    with pytest.raises(UsageError, match=said):
        estimate([_plan(1)], **({"workers": 1, "rate": 1.0, "rate_source": "given"} | options))
