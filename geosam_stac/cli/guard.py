"""From errors and signals to messages and exit codes (SPEC-cli, "Exit codes").

Imports nothing heavy: `--help` and a mistyped option must answer at once.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Self

import typer

from geosam_stac.cli import console
from geosam_stac.cli.environment import origin
from geosam_stac.errors import EXIT_DEFECT, EXIT_SIGINT, GeosamStacError
from geosam_stac.hrefs import without_signatures

# The exit code is promised within 10 s of a signal.
GRACE_S = 8.0
# Libraries that log at ERROR, with tracebacks, what reaches the user as an error of ours.
NOISY = ("gcsfs", "google.auth", "fsspec", "s3fs", "botocore", "aiohttp")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = "interrupted: finished Items and chips are kept; the same command does the rest"

# typer has a click of its own since 0.20, another package's before: this is either's base class.
_ClickException: type[Exception] = typer.BadParameter.__mro__[2]


def run(app: typer.Typer, argv: Sequence[str]) -> int:
    """Run a command line; what it raises becomes one paragraph on stderr. Returns the exit code."""
    for name in NOISY:
        # They print tracebacks of what they try again, or raise anyway as errors that are told.
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    with _Signals() as signals:
        try:
            command: Any = typer.main.get_command(app)
            code = command.main(args=list(argv), prog_name="geosam-stac", standalone_mode=False)
        except _ClickException as error:
            return _usage(error)
        except GeosamStacError as error:
            return failed(error)
        except KeyboardInterrupt:
            code = EXIT_SIGINT
        except SystemExit as leave:
            code = leave.code
        except Exception as error:  # noqa: BLE001 - the last resort: a defect, exit 1
            # typer makes Abort of any EOFError, and would say nothing of it.
            return _defect(error.__cause__ or error if isinstance(error, typer.Abort) else error)
        if signals.received is not None:  # typer makes 130 of any KeyboardInterrupt
            code = 128 + signals.received
        if signals.received is not None or code == EXIT_SIGINT:
            console.error(INTERRUPTED)
        return code if isinstance(code, int) else 0


def failed(error: GeosamStacError) -> int:
    """Print an error, with -v its traceback too; returns its exit code."""
    console.error(str(error))
    if console.verbose():
        console.show_traceback(error)
    return error.exit_code


def _usage(error: Any) -> int:
    """An option that is unknown, missing or no number: typer's own errors, in our words."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return int(error.exit_code)
    near = getattr(error, "possibilities", None)
    text = (error.message if near else error.format_message()).strip().rstrip(".")
    did_you_mean = f" Did you mean {' or '.join(sorted(near))}?" if near else ""
    ctx, param = getattr(error, "ctx", None), getattr(error, "param", None)
    path = ctx.command_path if ctx else "geosam-stac"
    place = origin(ctx, param) if ctx and param else None
    where = f" (from {place})" if place else ""
    console.error(f"{text[:1].lower()}{text[1:]}{where}.{did_you_mean} See `{path} --help`.")
    return int(error.exit_code)


def _defect(error: BaseException) -> int:
    console.error(
        f"a defect of geosam-stac: {type(error).__name__}: {without_signatures(str(error))}. "
        "Please report it with the output of the same command and -v."
    )
    if console.verbose():
        console.show_traceback(error)
    return EXIT_DEFECT


class _Signals:
    """SIGINT and SIGTERM raise KeyboardInterrupt in the main thread; a watchdog keeps the promise.

    A handler written in Python waits while the main thread is inside a C call, as GDAL's on a
    server that has gone silent. The watchdog hears of the signal through a socket that the C
    handler writes to, and ends the process when it is still there after `GRACE_S`.

    Where C has called Python, as GDAL does to log, the KeyboardInterrupt goes no further than that
    call, and the interpreter would print its traceback.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._old: dict[int, Any] = {}
        self._hooks = (sys.excepthook, sys.unraisablehook)

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may set handlers
        self._ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._theirs = theirs
        self._old_fd = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        # What is ignored stays so: a shell starts background jobs that way.
        caught = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._old = {number: signal.signal(number, self._handle) for number in caught}
        sys.excepthook, sys.unraisablehook = self._uncaught, self._unraisable
        threading.Thread(target=self._watch, name="geosam-watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # After a signal the watchdog stays: a pool's threads can hold up the interpreter's end.
        if self.received is not None or threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        sys.excepthook, sys.unraisablehook = self._hooks
        self._theirs.close()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + signum)  # asked twice
        self.received = signum
        raise KeyboardInterrupt

    # Of Cython's callbacks, as rasterio's, both of these are told; of ctypes' the second.

    def _uncaught(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if not self._is_ours(kind):
            self._hooks[0](kind, error, trace)

    def _unraisable(self, told: sys.UnraisableHookArgs) -> None:
        if not self._is_ours(told.exc_type):
            self._hooks[1](told)

    def _is_ours(self, kind: type[BaseException]) -> bool:
        return self.received is not None and issubclass(kind, KeyboardInterrupt)

    def _watch(self) -> None:
        with self._ours:
            while number := self._ours.recv(1):
                if number[0] not in SIGNALS:
                    continue
                time.sleep(GRACE_S)
                os.write(2, f"error: {INTERRUPTED}\n".encode())
                os._exit(128 + number[0])
