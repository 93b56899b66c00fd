"""Crew and Channel: bounded, stopped together, nothing lost."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from geosam_stac.crew import Channel, Crew
from geosam_stac.errors import DataError, Interrupted


def test_everything_put_is_taken_once():
    crew = Crew()
    channel: Channel[int] = Channel(3, crew.stop)
    taken: list[int] = []

    def produce():
        for number in range(200):
            channel.put(number)
        channel.close(2)

    def consume():
        taken.extend(channel)

    for target in (produce, consume, consume):
        crew.start(target)
    crew.join()
    crew.finish()
    assert sorted(taken) == list(range(200))


def test_one_failure_wakes_who_waits_on_a_full_and_on_an_empty_queue():
    crew = Crew()
    full: Channel[int] = Channel(1, crew.stop)
    empty: Channel[int] = Channel(1, crew.stop)

    def put():
        while True:
            full.put(1)

    def take():
        list(empty)

    def fail():
        time.sleep(0.05)
        raise DataError("the cause")

    started = time.monotonic()
    for target in (put, take, fail):
        crew.start(target)
    crew.join()
    assert time.monotonic() - started < 2
    with pytest.raises(DataError, match="the cause"):
        crew.finish()


def test_a_signal_in_the_waiting_does_not_lose_a_thread():
    crew = Crew()
    go = threading.Event()
    done: list[int] = []

    def slow():
        go.wait(30)
        done.append(1)

    def interrupt(signum, frame):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        crew.start(slow)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            crew.join()
    finally:
        signal.signal(signal.SIGALRM, old)
    threading.Timer(0.3, go.set).start()
    crew.join()
    assert done == [1]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted(signum=15)])
def test_an_interruption_goes_before_an_earlier_failure(stop):
    crew = Crew()
    crew.fail(DataError("earlier"))
    crew.fail(stop)
    with pytest.raises(type(stop)):
        crew.finish()


def test_the_first_of_two_failures():
    crew = Crew()
    crew.fail(DataError("first"))
    crew.fail(DataError("second"))
    with pytest.raises(DataError, match="first"):
        crew.finish()


def test_join_gives_up_on_a_thread_that_is_stuck(monkeypatch):
    monkeypatch.setattr("geosam_stac.crew.STOP_S", 0.2)
    crew, stuck = Crew(), threading.Event()

    def hang():
        stuck.wait(10)

    crew.start(hang)
    crew.fail(DataError("elsewhere"))
    started = time.monotonic()
    crew.join()
    assert 0.2 < time.monotonic() - started < 2
    stuck.set()


def test_join_waits_for_work_that_goes_on(monkeypatch):
    monkeypatch.setattr("geosam_stac.crew.STOP_S", 0.0)
    crew, done = Crew(), []

    def work():
        time.sleep(0.3)
        done.append(1)

    crew.start(work)
    crew.join()
    assert done == [1]
