"""retry: when, how long and how often; with a clock of the tests' own."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from geosam_stac.config import EncodeConfig
from geosam_stac.errors import (
    ConfigurationError,
    DataError,
    ForbiddenError,
    GeosamStacError,
    StorageError,
    TemporaryError,
    WrongContentError,
)
from geosam_stac.events import Event, Notice
from geosam_stac.retry import Retries, RetryPolicy, retry_after_s


class Time:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def retries_of(moment: Time, *, sink=lambda event: None, top: bool = True, **policy) -> Retries:
    return Retries(
        RetryPolicy(**policy),
        sink=sink,
        clock=moment.clock,
        wait=moment.wait,
        uniform=lambda low, high: high if top else low,
    )


def failing(*errors: GeosamStacError, value: str = "value"):
    """An operation that fails so, then succeeds; and its calls."""
    left, calls = list(errors), []

    def do(tries: int) -> str:
        calls.append(tries)
        if left:
            raise left.pop(0)
        return value

    return do, calls


def test_success_waits_for_nothing():
    moment = Time()
    do, calls = failing()
    retries = retries_of(moment)
    assert retries.run("read", do) == "value"
    assert (calls, moment.waits, retries.counts()) == ([0], [], {})


def test_waits_double_up_to_a_ceiling():
    moment = Time()
    do, calls = failing(*[TemporaryError("x") for _ in range(5)])
    assert retries_of(moment, base_s=1.0, max_wait_s=5.0).run("read", do) == "value"
    assert moment.waits == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert calls == [0, 1, 2, 3, 4, 5]


def test_the_jitter_is_full():
    moment = Time()
    do, _ = failing(TemporaryError("x"))
    retries_of(moment, top=False).run("read", do)
    assert moment.waits == [0.0]


@pytest.mark.parametrize(
    "error",
    [DataError("x"), ForbiddenError("x"), StorageError("x"), ConfigurationError("x")],
    ids=lambda error: type(error).__name__,
)
def test_what_lasts_is_not_tried_again(error):
    moment = Time()
    do, calls = failing(error)
    with pytest.raises(type(error)) as caught:
        retries_of(moment).run("read", do)
    assert caught.value is error
    assert (calls, moment.waits, error.message) == ([0], [], "x")


def test_wrong_content_is_asked_for_twice_more():
    do, calls = failing(*[WrongContentError("x") for _ in range(9)])
    with pytest.raises(WrongContentError, match="x, in 3 tries"):
        retries_of(Time()).run("read", do)
    assert calls == [0, 1, 2]


def test_the_number_of_tries_ends_it():
    do, calls = failing(*[TemporaryError("x") for _ in range(9)])
    with pytest.raises(TemporaryError, match="x, in 4 tries"):
        retries_of(Time(), tries=4).run("read", do)
    assert calls == [0, 1, 2, 3]


def test_no_wait_goes_beyond_the_deadline():
    moment = Time()
    do, calls = failing(*[TemporaryError("x") for _ in range(99)])
    with pytest.raises(TemporaryError):
        retries_of(moment, deadline_s=10.0, base_s=3.0, tries=99).run("read", do)
    assert moment.waits == [3.0, 6.0, 1.0]
    assert len(calls) == 4


def test_the_operations_own_time_counts():
    moment = Time()

    def do(tries: int) -> str:
        moment.now += 8.0
        raise TemporaryError("x")

    with pytest.raises(TemporaryError):
        retries_of(moment, deadline_s=10.0, base_s=1.0).run("read", do)
    assert moment.waits == [1.0]


def test_retry_after_is_honoured_up_to_the_deadline():
    moment = Time()
    errors = [TemporaryError("x"), TemporaryError("x")]
    errors[0].retry_after_s, errors[1].retry_after_s = 7.0, 86400.0
    do, _ = failing(*errors)
    assert retries_of(moment, deadline_s=20.0).run("search", do) == "value"
    assert moment.waits == [7.0, 13.0]


def test_a_deadline_of_zero_tries_once():
    do, calls = failing(TemporaryError("x"))
    with pytest.raises(TemporaryError):
        retries_of(Time(), deadline_s=0.0).run("read", do)
    assert calls == [0]


def test_a_forbidden_read_gets_one_new_signature():
    asked = []
    do, calls = failing(ForbiddenError("x"), ForbiddenError("y"))
    with pytest.raises(ForbiddenError, match="y"):
        retries_of(Time()).run("read", do, renew=lambda: not asked.append(1))
    assert (calls, asked) == ([0, 1], [1])


def test_without_another_signature_forbidden_is_final():
    do, calls = failing(ForbiddenError("x"))
    with pytest.raises(ForbiddenError):
        retries_of(Time()).run("read", do, renew=lambda: False)
    assert calls == [0]


def test_data_errors_ask_for_no_signature():
    do, _ = failing(DataError("x"))
    with pytest.raises(DataError):
        retries_of(Time()).run("read", do, renew=lambda: pytest.fail("asked"))


def test_progress_starts_the_time_anew():
    moment, size = Time(), [0]

    def do(tries: int) -> str:
        moment.now += 60.0
        if tries < 4:
            size[0] += 1
        if tries < 6:
            raise TemporaryError("x")
        return "whole"

    retries = retries_of(moment, deadline_s=100.0, tries=3, base_s=0.5)
    with pytest.raises(TemporaryError, match="in 6 tries"):
        retries.run("checkpoint", do, progress=lambda: size[0])


def test_it_is_counted_and_told():
    heard: list[Event] = []
    error = TemporaryError("it broke", item="scene", href="https://x.test/a", got="HTTP 503")
    error.hint = "Try again"
    retries = retries_of(Time(), sink=heard.append)
    retries.run("read", failing(error, TemporaryError("y"))[0])
    retries.run("write", failing(TemporaryError("z"))[0])
    assert retries.counts() == {"read": 2, "write": 1}
    assert retries.take() == {"read": 2, "write": 1}
    assert retries.take() == {}
    assert heard[0] == Notice(
        message="it broke (item scene, href https://x.test/a); got HTTP 503; trying again in 0.5 s",
        level="warning",
    )


def test_a_stop_ends_the_wait_at_once():
    retries = Retries(RetryPolicy(base_s=60.0, deadline_s=600.0), uniform=lambda low, high: high)
    threading.Timer(0.1, retries.stop.set).start()
    started = time.monotonic()
    with pytest.raises(TemporaryError):
        retries.run("read", failing(TemporaryError("x"))[0])
    assert time.monotonic() - started < 30
    do, calls = failing(TemporaryError("x"))
    with pytest.raises(TemporaryError):
        retries.run("read", do)
    assert calls == [0]  # stopped: the one try that was asked for


def test_the_policy_is_what_the_options_say():
    policy = RetryPolicy.of(EncodeConfig.of({"timeout": 4, "retry_deadline": 30}))
    assert (policy.timeout_s, policy.deadline_s) == (4.0, 30.0)
    assert policy.http_timeout_s == (4.0, 4.0)
    assert RetryPolicy(timeout_s=60).http_timeout_s == (10.0, 60)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("", None), ("7", 7.0), (" 12 ", 12.0), ("soon", None), ("-3", None)],
)
def test_retry_after(value, seconds):
    assert retry_after_s(value) == seconds


def test_retry_after_as_a_date():
    later = datetime.now(UTC) + timedelta(seconds=100)
    assert 90 < retry_after_s(format_datetime(later, usegmt=True)) <= 100
    assert retry_after_s("Mon, 01 Jan 2001 00:00:00 GMT") == 0.0
