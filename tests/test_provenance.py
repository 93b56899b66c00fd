"""run.json: versions, config, no secret."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from geosam_stac.errors import GeosamStacError
from geosam_stac.provenance import run_document, software

CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))


def document(**changes):
    given = {"config": {"stride": 512}, "facts": {"chips": 3}, "sources": None, "created": CREATED}
    return json.loads(run_document(**(given | changes)))


def test_software_leaves_out_what_is_not_installed():
    found = software(("numpy", "no-such-package"))
    assert list(found) == ["numpy"]
    assert found["numpy"][0].isdigit()


def test_run_document():
    found = document(sources={"stride": "environment"})
    assert found["created"] == "2026-01-02T01:04:05+00:00"
    assert datetime.fromisoformat(found["created"]).tzinfo == UTC
    assert found["config"] == {"stride": 512}
    assert found["config_sources"] == {"stride": "environment"}
    assert found["inputs"] == {}
    assert found["run"] == {"chips": 3}
    assert {"geosam-stac", "torch", "rasterio"} <= set(found["environment"]["software"])
    assert set(found["environment"]) == {"python", "platform", "software"}


def test_hrefs_are_unsigned():
    config = {"checkpoint": "https://host/w.pt?X-Amz-Signature=abc&v=1", "bands": ["red"]}
    assert document(config=config)["config"] == {
        "checkpoint": "https://host/w.pt?v=1",
        "bands": ["red"],
    }


def test_what_was_asked_for_is_recorded_and_checked():
    asked = {"search": "https://api/v1", "collection": ["c"], "limit": 3}
    assert document(inputs=asked)["inputs"] == asked
    with pytest.raises(GeosamStacError, match="token") as raised:
        document(inputs={"search": "https://api/v1?token=SECRET"})
    assert "SECRET" not in str(raised.value)


def test_a_secret_that_is_left_is_refused():
    with pytest.raises(GeosamStacError, match="sig") as raised:
        document(facts={"got": ["https://host/a.tif?sig=SECRET"]})
    assert "SECRET" not in str(raised.value)
