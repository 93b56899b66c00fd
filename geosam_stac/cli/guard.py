"""From errors and signals to messages and exit codes (SPEC-cli, "Exit codes")."""

from __future__ import annotations

import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

from geosam_stac.cli import console
from geosam_stac.errors import EXIT_DEFECT, EXIT_SIGINT, GeosamStacError, Interrupted


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what a command raises into one paragraph on stderr and an exit code."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        signal.signal(signal.SIGTERM, _terminate)
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except GeosamStacError as error:
            fail(error)
        except KeyboardInterrupt:
            console.error("interrupted")
            raise SystemExit(EXIT_SIGINT) from None
        except BrokenPipeError:
            # The reader downstream has gone (as `| head`): no traceback, now or at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None
        except Exception as error:  # noqa: BLE001 - the last resort: a defect, exit 1
            console.error(
                f"a defect of geosam-stac: {type(error).__name__}: {error}. "
                "Please report it with the output of the same command and -v."
            )
            if console.verbose():
                traceback.print_exc()
            raise SystemExit(EXIT_DEFECT) from None

    return wrapper


def fail(error: GeosamStacError) -> None:
    """Print an error and leave with its exit code."""
    console.error(str(error))
    if console.verbose():
        traceback.print_exception(error)
    raise SystemExit(error.exit_code) from None


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise Interrupted("terminated", signum=signum)
