"""Reports and the clock: what a shard's exit code is, what is believed, how long it is waited."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from geosam_stac.errors import ConfigurationError, DataError
from geosam_stac.scale.clock import NAME, Clock
from geosam_stac.scale.reports import Entry, Report, Reports, exit_code, now
from geosam_stac.scale.shards import Shard
from geosam_stac.storage import Store

ONE = Shard(index=1, count=3)


def _entry(code: int) -> Entry:
    fields: dict[str, Any] = {"scene": 0, "part": 0, "parts": 1, "name": "x", "item_id": "x"}
    error = None if code == 0 else "broken"
    return Entry(**fields, href=None, error=error, exit_code=code)


@pytest.fixture
def reports(tmp_path) -> Reports:
    return Reports(Store(str(tmp_path)), "0" * 64, 3)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([], 0),
        ([0, 0], 0),
        ([0, 65], 0),
        ([65, 0, 2], 0),
        ([65], 65),
        ([2, 65], 65),
        ([75], 75),
        ([0, 65, 75], 75),
        ([65, 1], 75),
    ],
)
def test_exit_code(codes, expected):
    assert exit_code([_entry(code) for code in codes]) == expected


def test_a_shard_that_begins_takes_back_what_it_said(reports):
    begun = reports.begin(ONE)
    reports.end(ONE, begun, [_entry(65)])
    (found,) = reports.read().values()
    assert found.begun == begun.begun <= found.ended
    assert found.has_failures and found.is_settled
    assert found.entries == (_entry(65),)
    reports.begin(ONE)
    (found,) = reports.read().values()
    assert (found.ended, found.entries, found.is_settled) == (None, (), False)


def test_what_would_end_every_shard(reports):
    reports.fail(ONE, reports.begin(ONE), ConfigurationError("no such device"))
    (found,) = reports.read().values()
    assert "no such device" in (found.fatal or "")
    assert found.has_failures and not found.is_settled


def test_what_is_settled_is_not_read_again(reports):
    reports.end(ONE, reports.begin(ONE), [_entry(0)])
    known = reports.read()
    reports.begin(ONE)
    assert reports.read(known) == known
    assert reports.read()[1].ended is None


def test_a_damaged_report(reports):
    reports.store.put(f"{reports.folder}/{ONE.name}.json", b'{"begun": 1}')
    with pytest.raises(DataError, match="cannot be read"):
        reports.read()


# The clock


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = now()

    def __call__(self):
        return self.now

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def time() -> Time:
    return Time()


def _clock(reports, time, attempt: str | None = "job-1", wait_s: float = 100.0) -> Clock:
    return Clock(reports, attempt=attempt, wait_s=wait_s, time=time)


def test_a_pod_that_takes_over_goes_on_with_the_wait(reports, time):
    assert _clock(reports, time).left_s([]) == 100
    time.later(70)
    assert _clock(reports, time).left_s([]) == pytest.approx(30)
    time.later(40)
    assert _clock(reports, time).left_s([]) < 0
    # Another Job has another one, and a process without a name its own.
    assert _clock(reports, time, "job-2").left_s([]) == 100
    assert _clock(reports, time, None).left_s([]) == 100


def test_the_wait_counts_from_the_first_shard(reports, time):
    """A queue may let the finalizer in long before the shards."""
    old = Report(begun=time.now - timedelta(days=1))
    clock = _clock(reports, time)
    time.later(90)
    first = Report(begun=time.now)
    assert clock.left_s([old]) == pytest.approx(10)
    assert clock.left_s([old, first]) == 100
    time.later(60)
    again = Report(begun=time.now)  # killed, and begun anew: that does not turn the clock back
    assert clock.left_s([old, again]) == pytest.approx(40)
    assert _clock(reports, time).left_s([old, again]) == pytest.approx(40)


def test_failures_of_an_earlier_attempt_are_waited_for(reports, time):
    begun = time.now
    time.later(10)
    failed = Report(begun=begun, ended=time.now, entries=(_entry(65),))
    done = Report(begun=begun, ended=time.now, entries=(_entry(0),))
    first = _clock(reports, time)
    assert not first.is_old(failed)
    time.later(10)
    first.end()
    assert not _clock(reports, time).is_old(failed)  # the same attempt, in another pod
    assert not _clock(reports, time, None).is_old(failed)
    time.later(10)
    second = _clock(reports, time, "job-2")
    assert second.is_old(failed) and not second.is_old(done)
    assert not second.is_old(Report(begun=time.now, ended=time.now, entries=(_entry(65),)))


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"name": "job-1", "since": 3}'])
def test_a_damaged_clock_begins_anew(reports, time, data):
    reports.store.put(f"{reports.folder}/{NAME}", data)
    assert _clock(reports, time).left_s([]) == 100
