"""The command as a process: signals, closed pipes, a terminal, how soon it answers."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, make_item, python

SLOW = ("-m", "tests.cli.slow_main")
#: Only a test that hangs waits as long: a process takes its time to start where others run beside
#: it. What is promised within a time is measured on its own.
PATIENCE_S = 180.0


@pytest.fixture
def long_item(tmp_path):
    """63 chips."""
    return make_item(tmp_path, "scene", size=(64, 2048))


def started(process: subprocess.Popen, text: str, timeout_s: float = PATIENCE_S) -> str:
    """Read stderr until it says `text`."""
    seen = ""
    deadline = time.monotonic() + timeout_s
    while text not in seen:
        assert time.monotonic() < deadline, seen
        line = process.stderr.readline()
        assert line, f"ended early: {seen}"
        seen += line
    return seen


def wait_for(pattern: str, folder: Path, timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not list(folder.rglob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern}"
        time.sleep(0.02)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_in_mid_run(fake, long_item, tmp_path, signum, code):
    process = python(*SLOW, 1.0, *fake)  # it has a dozen batches left when the first is there
    with process:
        wait_for("*.pt", tmp_path)
        process.send_signal(signum)
        at = time.monotonic()
        out, err = process.communicate(timeout=PATIENCE_S)
    assert time.monotonic() - at < 10
    assert process.returncode == code
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: interrupted: ")
    assert not list((tmp_path / "out").glob("*/*.json"))
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_a_real_model_stops_too(fake, long_item, tmp_path):
    fake[fake.index("--stride") + 1] = "64"
    process = python("-m", "geosam_stac", *fake, "--chip-size", "64")
    with process:
        started(process, "32 chips")
        time.sleep(1.0)  # in the model's first chips
        process.send_signal(signal.SIGTERM)
        at = time.monotonic()
        _, err = process.communicate(timeout=PATIENCE_S)
    assert time.monotonic() - at < 10
    assert process.returncode == 143
    assert "Traceback" not in err
    assert not list((tmp_path / "out").glob("*/*.json"))


def test_the_watchdog_ends_what_cannot_be_interrupted(tmp_path):
    """A C call that holds on, with a handler in Python that can therefore not run."""
    code = (
        "import ctypes, sys, typer\n"
        "from geosam_stac.cli import guard\n"
        "guard.GRACE_S = 0.5\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def hang():\n"
        "    libc, mutex = ctypes.CDLL(None), (ctypes.c_char * 64)()\n"
        "    libc.pthread_mutex_lock(mutex)\n"
        "    print('ready', flush=True)\n"
        "    libc.pthread_mutex_lock(mutex)\n"
        "sys.exit(guard.run(app, []))\n"
    )
    process = python("-c", code)
    with process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        at = time.monotonic()
        _, err = process.communicate(timeout=PATIENCE_S)
    assert time.monotonic() - at < 10  # it hangs for ever without the watchdog
    assert process.returncode == 143
    assert "interrupted" in err


@pytest.mark.parametrize("library", ["ctypes", "rasterio"])
def test_a_signal_while_c_calls_python(library):
    """As GDAL does to log: the interrupt ends in that call, and no traceback is printed."""
    call = {
        "ctypes": "    ctypes.CFUNCTYPE(None)(signalled)()\n",
        "rasterio": (
            "    handler = logging.Handler()\n"
            "    handler.emit = lambda record: 'GDAL signalled' in record.msg and signalled()\n"
            "    logging.getLogger('rasterio').addHandler(handler)\n"
            "    logging.getLogger('rasterio').setLevel(logging.INFO)\n"
            "    with contextlib.suppress(rasterio.RasterioIOError):\n"
            "        rasterio.open('/nowhere.tif')\n"
        ),
    }[library]
    code = (
        f"import contextlib, ctypes, logging, os, signal, sys, typer, {library}\n"
        "from geosam_stac.cli import guard\n"
        "app = typer.Typer()\n"
        "def signalled():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    for _ in range(1000): pass\n"
        f"@app.command()\ndef call():\n{call}"
        "    print('goes on', file=sys.stderr)\n"
        "sys.exit(guard.run(app, []))\n"
    )
    with python("-c", code) as process:
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 143
    assert err.splitlines()[0] == "goes on"
    assert err.splitlines()[1].startswith("error: interrupted: ")


def test_a_reader_that_goes_away(fake, tmp_path):
    second = make_item(tmp_path, "second")
    process = python(*SLOW, 0, *fake, "--item", second)
    with process:
        process.stdout.close()  # as `| head -0`
        err = process.stderr.read()
        assert process.wait(PATIENCE_S) == 0
    assert "Traceback" not in err
    assert "BrokenPipe" not in err
    assert (
        len(list((tmp_path / "out").glob("*/*_sam2.1-hiera-tiny_*.json"))) == 2
    )  # the work goes on


def test_nobody_listens_to_progress(fake, tmp_path):
    process = python(*SLOW, 0, *fake)
    with process:
        process.stderr.close()
        assert process.stdout.read().endswith(".json\n")
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("argv", [["--help"], ["encode", "--help"], ["models", "list"]])
def test_help_into_a_closed_pipe(argv):
    process = python("-m", "geosam_stac", *argv)
    with process:
        process.stdout.close()
        err = process.stderr.read()
        process.wait(PATIENCE_S)
    assert "Traceback" not in err
    assert "Exception" not in err


def test_stdout_that_is_full(fake):
    with open("/dev/full", "w") as full, python(*SLOW, 0, *fake, stdout=full) as process:  # noqa: PTH123
        err = process.stderr.read()
        assert process.wait(PATIENCE_S) == 74
    assert "error: stdout cannot be written; got No space left on device." in err
    assert "Traceback" not in err


def in_a_terminal(argv: list[str], columns: int = 100) -> tuple[int, str]:
    """Run with stderr on a terminal; exit code and what it showed."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": str(columns)}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", *argv],
        stdout=subprocess.DEVNULL, stderr=theirs, cwd=ROOT, env=environment,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    with process, contextlib.suppress(OSError):  # Linux: EIO when the other end closes
        while select.select([ours], [], [], PATIENCE_S)[0] and (part := os.read(ours, 65536)):
            shown += part
    os.close(ours)
    return process.wait(), shown.decode()


def test_a_progress_bar_on_a_terminal(fake):
    code, shown = in_a_terminal([*SLOW, "0.2", *fake])
    assert code == 0
    assert "chips" in shown
    assert "━" in shown
    assert "4/4" in shown or "3/4" in shown


def test_help_and_mistakes_answer_at_once():
    """Neither torch nor GDAL is imported for them: under a second, where torch alone takes two."""
    for argv in (["--help"], ["encode", "--help"], ["--version"], ["encode", "--strid", "3"]):
        code = (
            "import sys\n"
            "from geosam_stac.cli import main\n"
            "try:\n    main(sys.argv[1:])\n"
            "finally:\n"
            "    print(sorted({'torch', 'rasterio', 'numpy', 'odc'} & set(sys.modules)),"
            " file=sys.stderr)\n"
        )
        with python("-c", code, *argv) as process:
            _, err = process.communicate(timeout=PATIENCE_S)
        assert err.splitlines()[-1] == "[]", argv


def test_python_m_and_version():
    with python("-m", "geosam_stac", "--version") as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (0, "")
    assert out.startswith("geosam-stac 0.")
