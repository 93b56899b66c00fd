"""What the CLI prints: results to stdout, all else to stderr; a progress bar only on a terminal."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
import traceback
from typing import IO, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from geosam_stac import events
from geosam_stac.errors import StorageError
from geosam_stac.hrefs import without_signatures

LINE_EVERY_S = 5.0


class _Stderr(Console):
    """rich leaves the process when its reader has gone; a run must go on without one."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _discard(sys.stderr)


_stderr = _Stderr(stderr=True, highlight=False, soft_wrap=True)
_verbosity = 0


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """-q leaves warnings and errors, -v adds tracebacks."""
    global _verbosity  # noqa: PLW0603 - the process's one terminal
    _verbosity = -1 if quiet else int(verbose)


def verbose() -> bool:
    """Whether -v was given."""
    return _verbosity > 0


def result(text: str) -> None:
    """One line of result on stdout. A reader that has gone (as `| head`) does not stop the work.

    Raises StorageError when stdout cannot be written for another reason.
    """
    try:
        print(text, flush=True)  # noqa: T201 - results are what stdout is for
    except OSError as error:
        _discard(sys.stdout)  # else the interpreter complains of it again when it ends
        if error.errno != errno.EPIPE:
            raise StorageError("stdout cannot be written", got=error.strerror) from error


def result_json(document: Any) -> None:
    """One JSON document on one line of stdout."""
    result(json.dumps(document, default=str))


def note(text: str) -> None:
    """A line on stderr, unless -q."""
    if _verbosity >= 0:
        _say(text)


def warn(text: str) -> None:
    """A warning on stderr, also with -q."""
    _say(f"warning: {text}", style="yellow")


def error(text: str) -> None:
    """An error on stderr."""
    _say(f"error: {text}", style="bold red")


def show_traceback(error: BaseException) -> None:
    """The error's traceback on stderr, unsigned: its causes quote the URLs that were asked for."""
    print(  # noqa: T201 - -v asks for it
        without_signatures("".join(traceback.format_exception(error))), file=sys.stderr, end=""
    )


def _say(text: str, style: str = "") -> None:
    # One paragraph, and no escape sequence: ids and servers' answers come from strangers.
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    _stderr.print(Text(line, style=style))


def _discard(stream: IO[str]) -> None:
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)


class _Count(ProgressColumn):
    """Bytes of a download, else how many of how many."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes, self._chips = DownloadColumn(), MofNCompleteColumn()

    def render(self, task: Any) -> Text:
        return (self._bytes if task.fields["bytes_"] else self._chips).render(task)


class ProgressSink:
    """Draws events: a bar on a terminal, a line every few seconds elsewhere. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_line_s = time.monotonic()
        self._done = 0
        self._chips = 0
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
            case events.SceneStarted(item_id=item_id, chips=chips):
                self._stop()
                self._done, self._chips = 0, chips
                note(f"{item_id}: {chips:,} chip{'s' if chips != 1 else ''}")
            case events.ScanProgress(done=done, total=total):
                self._advance("measuring the value range", done, total)
            case events.ChipDone():
                self._done += 1
                self._advance("chips", self._done, self._chips)
            case events.SceneFinished():
                self._stop()

    def _advance(self, name: str, done: int, total: int | None, *, bytes_: bool = False) -> None:
        if _verbosity < 0:
            return
        if _stderr.is_terminal:
            self._draw(name, done, total, bytes_)
            return
        now = time.monotonic()
        if now - self._last_line_s >= LINE_EVERY_S or (done == total and done > 1):
            self._last_line_s = now
            scale, unit = (1e6, " MB") if bytes_ else (1, "")
            of = f" of {total / scale:,.0f}" if total else ""
            note(f"{name}: {done / scale:,.0f}{of}{unit}")

    def _draw(self, name: str, done: int, total: int | None, bytes_: bool) -> None:
        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                _Count(),
                TimeRemainingColumn(),
                console=_stderr,
                transient=True,
            )
            self._bars.start()
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, bytes_=bytes_)
        self._bars.update(self._tasks[name], completed=done, total=total)
        if done == total:
            self._stop()

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks = {}
