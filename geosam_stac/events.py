"""Typed progress messages. Libraries emit them through a `Sink`; only the edges draw them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all messages."""


@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """Something the user should know; `level` is "info" or "warning"."""

    message: str
    level: str = "info"


@dataclass(frozen=True, kw_only=True)
class Download(Event):
    """A download goes on: bytes so far of a total (None when the server does not say)."""

    name: str
    done_bytes: int
    total_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class SceneStarted(Event):
    """A scene's plan is made: how many chips, of which size, on which grid."""

    scene_id: str
    item_id: str
    chips: int


@dataclass(frozen=True, kw_only=True)
class ScanProgress(Event):
    """The value range is being measured: blocks so far of a total."""

    scene_id: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class ChipDone(Event):
    """One chip came to its end: `outcome` is "encoded", "resumed" or "skipped"."""

    scene_id: str
    chip_id: str
    outcome: str
    bytes_written: int = 0


@dataclass(frozen=True, kw_only=True)
class BatchHalved(Event):
    """The device ran out of memory; the batch is now this many chips."""

    batch_size: int


@dataclass(frozen=True, kw_only=True)
class SceneFinished(Event):
    """A scene's Item is written (or was there already)."""

    scene_id: str
    href: str


Sink = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The sink that drops everything."""
