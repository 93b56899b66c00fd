"""What the CLI prints: results to stdout, all else to stderr; a progress bar only on a terminal."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from geosam_stac import events

LINE_EVERY_S = 5.0

_stderr = Console(stderr=True, highlight=False, soft_wrap=True)
_verbosity = 0


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """-q leaves only errors, -v adds tracebacks and every notice."""
    global _verbosity  # noqa: PLW0603 - the process's one terminal
    _verbosity = -1 if quiet else int(verbose)


def verbose() -> bool:
    """Whether -v was given."""
    return _verbosity > 0


def result(text: str) -> None:
    """One line of result on stdout."""
    print(text, flush=True)  # noqa: T201 - results are what stdout is for


def result_json(document: Any) -> None:
    """One JSON document on one line of stdout."""
    result(json.dumps(document, default=str))


def note(text: str) -> None:
    """A line on stderr, unless -q."""
    if _verbosity >= 0:
        _stderr.print(Text(text))


def warn(text: str) -> None:
    """A warning on stderr, also with -q."""
    _stderr.print(Text(f"warning: {text}", style="yellow"))


def error(text: str) -> None:
    """An error on stderr."""
    _stderr.print(Text(f"error: {text}", style="bold red" if _stderr.is_terminal else ""))


class ProgressSink:
    """Draws events: a bar on a terminal, a line every few seconds elsewhere. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_line_s = time.monotonic()
        self._done: dict[str, int] = {}
        self._total: dict[str, int] = {}
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressSink:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def __call__(self, event: events.Event) -> None:
        """Take in one event; called from several threads."""
        with self._lock:
            self._take(event)

    def _take(self, event: events.Event) -> None:
        match event:
            case events.Notice(message=message, level="warning"):
                warn(message)
            case events.Notice(message=message):
                note(message)
            case events.BatchHalved(batch_size=size):
                warn(f"the device ran out of memory: batches of {size} from now on")
            case events.Download(name=name, done_bytes=done, total_bytes=total):
                self._advance(name, done, total, bytes_=True)
            case events.SceneStarted(scene_id=scene, item_id=item_id, chips=chips):
                self._done[scene] = 0
                self._total[scene] = chips
                note(f"{item_id}: {chips:,} chip{'s' if chips != 1 else ''}")
            case events.ScanProgress(scene_id=scene, done=done, total=total):
                self._advance(f"{scene} value range", done, total)
            case events.ChipDone(scene_id=scene):
                self._done[scene] += 1
                self._advance(scene, self._done[scene], self._total[scene])
            case events.SceneFinished():
                self._stop()

    def _advance(self, name: str, done: int, total: int | None, *, bytes_: bool = False) -> None:
        if _verbosity < 0:
            return
        if _stderr.is_terminal:
            self._draw(name, done, total, bytes_)
            return
        now = time.monotonic()
        if done == total or now - self._last_line_s >= LINE_EVERY_S:
            self._last_line_s = now
            scale, unit = (1e6, " MB") if bytes_ else (1, "")
            of = f" of {total / scale:,.0f}" if total else ""
            note(f"{name}: {done / scale:,.0f}{of}{unit}")

    def _draw(self, name: str, done: int, total: int | None, bytes_: bool) -> None:
        if self._bars is None:
            count = DownloadColumn() if bytes_ else MofNCompleteColumn()
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                count,
                TimeRemainingColumn(),
                console=_stderr,
                transient=True,
            )
            self._bars.start()
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total)
        self._bars.update(self._tasks[name], completed=done, total=total)
        if done == total:
            self._stop()

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks = {}
