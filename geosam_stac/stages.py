"""How long each stage of a run was at work: the clock behind `EncodeResult.seconds` and `busy`.

Pure, thread-safe; imports nothing of the project.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator


class Stage:
    """One stage: what its threads spent at work, waiting for other stages left out.

    Attributes
    ----------
    threads
        How many threads work for it.
    seconds
        Busy time, summed over the threads.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self.seconds = 0.0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """The time inside counts."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(time.monotonic() - started)

    def add(self, seconds: float) -> None:
        """Count so much more."""
        with self._lock:
            self.seconds += seconds


class Stages:
    """The stages of one run, and the time during which all of them ran.

    `wall` is that time in seconds; 0 until `running` has ended.
    """

    def __init__(self, **threads: int) -> None:
        self.by_name = {name: Stage(count) for name, count in threads.items()}
        self.wall = 0.0
        self._before: dict[str, float] = {}

    def __getitem__(self, name: str) -> Stage:
        return self.by_name[name]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """All stages run inside: `busy` is about this time alone."""
        self._before = self.seconds()
        started = time.monotonic()
        try:
            yield
        finally:
            self.wall = time.monotonic() - started

    def seconds(self) -> dict[str, float]:
        """Busy time by stage."""
        return {name: stage.seconds for name, stage in self.by_name.items()}

    def busy(self) -> dict[str, float]:
        """By stage the fraction of its threads' time, 0 to 1, that they were at work."""
        if not self.wall:
            return dict.fromkeys(self.by_name, 0.0)
        return {
            name: min(
                1.0,
                (stage.seconds - self._before.get(name, 0.0)) / (stage.threads * self.wall),
            )
            for name, stage in self.by_name.items()
        }
