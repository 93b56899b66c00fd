"""A run that tells of each change of its output, and sends itself a signal at the n-th of them.

In the midst of a write too. `prepare` is called in a child of `tests.forks`; the rest is the
tests' side.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from tests import fakes
from tests.forks import Ended, Forks, Running, Tell

#: Where in a change a signal comes: of a file also with half of its bytes written, or all of them
#: under a name that is not yet its own.
PHASES = ("before", "half", "unnamed", "after")
CHANGES = ("put", "create", "delete", "delete_tree")


@dataclass(frozen=True, kw_only=True)
class Point:
    """The `number`-th change of the output (from 1 on), and where in it."""

    signum: int
    number: int
    phase: str

    @classmethod
    def at_random(cls, rng: random.Random, signum: int, numbers: Sequence[int]) -> Point:
        """At one of these changes."""
        return cls(signum=signum, number=rng.choice(numbers), phase=rng.choice(PHASES))


class _Watch:
    """Tells of every change of an output, and sends the signal at its point."""

    def __init__(self, tell: Tell, point: Point | None) -> None:
        self._tell, self._point = tell, point
        self._lock = threading.Lock()
        self._count = 0
        self._mine = threading.local()  # the phase of the change that this thread is in

    def install(self) -> None:
        from geosam_stac import local_backend
        from geosam_stac.object_backend import ObjectBackend

        for backend in (local_backend.LocalBackend, ObjectBackend):
            for name in CHANGES:
                setattr(backend, name, self._watched(name, getattr(backend, name)))
        local_backend._write_durably = self._written(local_backend._write_durably)
        local_backend._write_unnamed = self._unnamed(local_backend._write_unnamed)

    def _watched(self, name: str, call: Callable[..., object]) -> Callable[..., object]:
        def change(backend: object, key: str, *rest: object) -> object:
            # Of one that calls another, as `create` of `put`, the outer one is the change.
            if getattr(self._mine, "inside", False):
                return call(backend, key, *rest)
            with self._lock:
                self._count += 1
                here = self._point is not None and self._point.number == self._count
                self._tell(f"{name} {key}")
            phase = self._point.phase if here else None
            # An object store's objects have no halves that this side could see.
            splits = name in ("put", "create") and type(backend).__name__ == "LocalBackend"
            self._mine.inside, self._mine.phase = True, phase
            try:
                if phase == "before" or (phase in ("half", "unnamed") and not splits):
                    self._send()
                done = call(backend, key, *rest)
                if phase == "after":
                    self._send()
                return done
            finally:
                self._mine.inside = False

        return change

    def _written(self, write: Callable[[Path, bytes], None]) -> Callable[[Path, bytes], None]:
        def written(path: Path, data: bytes) -> None:
            phase = getattr(self._mine, "phase", None)
            if getattr(self._mine, "inside", False) and phase == "half":
                path.write_bytes(data[: len(data) // 2])
                self._send()
                path.unlink()  # the thread goes on, until it is told to stop
            write(path, data)
            if getattr(self._mine, "inside", False) and phase == "unnamed":
                self._send()

        return written

    def _unnamed(self, write: Callable[[Path, bytes], bool]) -> Callable[[Path, bytes], bool]:
        """A signal in the midst finds a named file: one without a name leaves no trace to test."""

        def unnamed(path: Path, data: bytes) -> bool:
            phase = getattr(self._mine, "phase", None)
            return phase not in ("half", "unnamed") and write(path, data)

        return unnamed

    def _send(self) -> None:
        assert self._point is not None
        self._mine.phase = None
        self._tell("signal")
        os.kill(os.getpid(), self._point.signum)


def prepare(tell: Tell, *, point: dict | None) -> None:
    """In the child: the fake model, which tells how many chips it is given, and the watch."""
    fakes.install(pytest.MonkeyPatch()).before = lambda chips: tell(f"encode {chips}")
    _Watch(tell, Point(**point) if point else None).install()


def start(
    runs: Forks,
    argv: Sequence[object],
    *,
    point: Point | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Running:
    """Start a command line under watch."""
    given = {"point": asdict(point) if point else None}
    return runs.start(argv, prepare=__name__, given=given, environ=environ)


def changes(ended: Ended) -> list[str]:
    """Changes of the output: what, and the key."""
    return [line for line in ended.told if line.split()[0] in CHANGES]


def encoded(ended: Ended) -> int:
    """Chips that the model was given."""
    return sum(int(line.split()[1]) for line in ended.told if line.startswith("encode "))
