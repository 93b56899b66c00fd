"""Threads that stop together, and the bounded queues between them.

Imports `errors` alone.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from geosam_stac.errors import Interrupted

# How soon a thread that waits for a queue sees that all are to stop.
POLL_S = 0.1
# How long a run that is to stop waits for what its threads are in the middle of.
STOP_S = 5.0

T = TypeVar("T")


class Crew:
    """The threads of a run. The first failure of any of them stops all; it is the one raised."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        # Set by each thread at its end. `Thread.is_alive` is no witness: Python 3.11 takes a thread
        # for ended when a signal interrupts its `join` (bpo-46726).
        self._ended: list[threading.Event] = []
        self._failures: list[BaseException] = []

    def start(self, target: Callable[[], None]) -> None:
        """Run `target` in a thread of its own, named after it."""
        ended = threading.Event()

        def body() -> None:
            try:
                target()
            except BaseException as error:  # noqa: BLE001 - handed to the calling thread
                self.fail(error)
            finally:
                ended.set()

        thread = threading.Thread(target=body, name=f"geosam-{target.__name__}", daemon=True)
        self._ended.append(ended)
        thread.start()

    def fail(self, error: BaseException) -> None:
        """Take note of a failure and stop the others. An interruption goes before all else."""
        if isinstance(error, Interrupted) or not isinstance(error, Exception):
            self._failures.insert(0, error)
        elif not isinstance(error, Stopped):
            self._failures.append(error)
        self.stop.set()

    def join(self) -> None:
        """Wait for the threads; once stopped, at most `STOP_S` longer.

        A thread that is inside a request by then is left behind: it sees `stop` when that ends.
        """
        deadline = None
        for ended in self._ended:
            while not ended.wait(POLL_S):
                if deadline is None and self.stop.is_set():
                    deadline = time.monotonic() + STOP_S
                if deadline is not None and time.monotonic() > deadline:
                    return

    def finish(self) -> None:
        """`join`, then raise the first failure, if there was one."""
        try:
            self.join()
        except BaseException as error:  # noqa: BLE001 - an interruption; raised below
            self.fail(error)
            self.join()
        self.raise_first()

    def raise_first(self) -> None:
        """Raise the first failure, if there was one."""
        if self._failures:
            raise self._failures[0]


class Stopped(Exception):
    """Another thread failed, or the run was asked to stop."""


class Channel(Generic[T]):
    """A bounded queue that gives up when `stop` is set, and ends when it is closed."""

    def __init__(self, size: int, stop: threading.Event) -> None:
        self._queue: queue.Queue[T | None] = queue.Queue(size)
        self._stop = stop

    def put(self, entry: T) -> None:
        """Hand over an entry; waits while the queue is full."""
        self._put(entry)

    def close(self, readers: int) -> None:
        """No more entries: each of so many readers is told."""
        for _ in range(readers):
            self._put(None)

    def _put(self, entry: T | None) -> None:
        while True:
            if self._stop.is_set():
                raise Stopped
            with contextlib.suppress(queue.Full):
                self._queue.put(entry, timeout=POLL_S)
                return

    def __iter__(self) -> Iterator[T]:
        while True:
            if self._stop.is_set():
                raise Stopped
            try:
                entry = self._queue.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if entry is None:
                return
            yield entry
