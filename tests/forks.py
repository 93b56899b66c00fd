"""Command lines as processes of their own, at a fork's price: for tests that need many of them.

A process imports torch and the project once (seconds), starts no thread, and forks a child for each
run (milliseconds). The child is a run like any other: the real `main`, ours or Dask's, the real
handlers of signals, its own environment and exit code, its own end by the interpreter; only the
model is `tests.fakes`. Many may run side by side. Run as `python -m tests.forks FD`, by `forks`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
#: Arrow's own allocator and BLAS have threads from the start, which a fork would lose.
ONE_THREAD = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "OMP_NUM_THREADS": "1"}
#: No run takes as long, on any machine.
PATIENCE_S = 240.0

#: Tells the tests' side something: a line.
Tell = Callable[[str], None]

# The side of the processes


def _run(request: dict, pipe: int, out: int, err: int) -> None:
    """In the child: become the command, until its end."""
    os.environ.clear()
    os.environ.update(request["environ"])
    for number, file in ((1, out), (2, err)):
        os.dup2(file, number)
        os.close(file)
    prepare = importlib.import_module(request["prepare"]).prepare
    prepare(lambda text: os.write(pipe, f"{text}\n".encode()), **request["given"])
    sys.argv[1:] = request["argv"]
    code: object = 1
    try:
        code = importlib.import_module(request["main"]).main()
    except SystemExit as leave:
        code = leave.code
    except BaseException:  # noqa: BLE001 - as the interpreter shows it
        traceback.print_exc()
    # The interpreter's own end, but for freeing the memory: all of the parent's would be copied.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else code is not None)


def _import_all() -> None:
    """What a run imports, so that no child must."""
    import geosam_stac
    from geosam_stac.cli import app

    for module in pkgutil.walk_packages(geosam_stac.__path__, "geosam_stac."):
        # Triton has no place without a GPU.
        if module.name.rpartition(".")[2] not in ("triton", "__main__"):
            importlib.import_module(module.name)
    app()
    for name in ("tests.fakes", "s3fs", "aiobotocore.session", "moto", "pyarrow.parquet"):
        importlib.import_module(name)
    with contextlib.suppress(ImportError):  # an extra
        for name in ("distributed.cli.dask_scheduler", "distributed.cli.dask_worker"):
            importlib.import_module(name)


def _serve(link: socket.socket) -> None:
    """Fork, and tell how a child has ended, until the tests' side has gone."""
    children: set[int] = set()
    while True:
        data, files, _, _ = socket.recv_fds(link, 1 << 20, 3)
        if not data:
            break
        request = json.loads(data)
        if "wait" in request:
            # Until here it is waited for by nobody, and nobody else gets its number.
            child, status = os.waitpid(request["wait"], 0)
            children.remove(child)
            link.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        child = os.fork()
        if child == 0:
            link.close()
            _run(request, *files)
        for file in files:
            os.close(file)
        children.add(child)
        link.send(str(child).encode())
    for child in children:
        os.kill(child, signal.SIGKILL)


def main() -> None:
    # As in a terminal: a shell that starts jobs in the background has SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _import_all()
    threads = os.listdir("/proc/self/task")  # noqa: PTH208
    gc.freeze()
    assert len(threads) == 1, "a fork has one thread alone, and all locks as they were"
    link = socket.socket(fileno=int(sys.argv[1]))
    link.send(b"ready")
    _serve(link)
    os._exit(0)  # nothing here is worth the time to free it


# The tests' side


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended: exit code (-9: by SIGKILL), output, lines told."""

    code: int
    out: str
    err: str
    told: list[str]


class Running:
    """A run under way."""

    def __init__(
        self, link: socket.socket, pid: int, pipe: int, out: IO[bytes], err: IO[bytes]
    ) -> None:
        self._link, self._pipe, self._out, self._err = link, pipe, out, err
        self._ended: Ended | None = None
        self.pid = pid
        self._heard = b""

    @property
    def told(self) -> str:
        """All that it has told so far, as far as anybody has listened."""
        return self._heard.decode()

    def hear(self, text: str) -> bool:
        """Wait until it has told this; False: it has ended before."""
        while text not in self.told:
            if not self._more():
                return False
        return True

    def says(self, text: str) -> None:
        """Wait until this stands on its stderr."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in _text(self._err):
            assert time.monotonic() < deadline, _text(self._err)
            time.sleep(0.02)

    def send_signal(self, signum: int) -> None:
        """Send a signal; to one that has ended it does nothing."""
        if self._ended is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        while self._listen(0.0):
            pass
        return None if self._ended is None else self._ended.code

    def wait(self) -> Ended:
        """Wait for its end."""
        while self._more():
            pass
        assert self._ended is not None
        return self._ended

    def _more(self) -> bool:
        """Wait until it tells more; False: it has ended."""
        more = self._listen(PATIENCE_S)
        if not more and self._ended is None:
            self.kill()
            raise AssertionError(f"it hangs: {_text(self._err)}")
        return more

    def _listen(self, timeout_s: float) -> bool:
        """Take in what it tells; False: it has told nothing in that time, or has ended."""
        if self._ended or not select.select([self._pipe], [], [], timeout_s)[0]:
            return False
        part = os.read(self._pipe, 1 << 16)
        self._heard += part
        if not part:
            self._end()
        return bool(part)

    def _end(self) -> None:
        """Its end of the pipe is closed, as only its end does."""
        self._link.send(json.dumps({"wait": self.pid}).encode())
        code = int(self._link.recv(16))
        os.close(self._pipe)
        with self._out, self._err:
            out, err = _text(self._out), _text(self._err)
        self._ended = Ended(code=code, out=out, err=err, told=self.told.splitlines())


def _text(file: IO[bytes]) -> str:
    """What stands in a file; where its writer stands, the process, remains."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")


class Forks:
    """Starts runs."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link

    def start(
        self,
        argv: Sequence[object],
        *,
        prepare: str,
        main: str = "geosam_stac.cli",
        given: Mapping[str, object] | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Running:
        """Start a command line.

        `prepare`: a module whose `prepare(tell, **given)` the child calls first; it puts the fake
        model in its place. `main`: a module whose `main()` it then becomes.
        """
        request = {
            "argv": [str(word) for word in argv],
            "environ": dict(environ),
            "prepare": prepare,
            "main": main,
            "given": dict(given or {}),
        }
        ours, theirs = os.pipe()
        # Both are closed when the run's end is known.
        out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        files = [theirs, out.fileno(), err.fileno()]
        socket.send_fds(self._link, [json.dumps(request).encode()], files)
        os.close(theirs)
        return Running(self._link, int(self._link.recv(16)), ours, out, err)


@contextlib.contextmanager
def forks() -> Iterator[Forks]:
    """Run the process that forks; when it ends, so do its children."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-W", "ignore", "-m", "tests.forks", str(theirs.fileno())]
    with ours, theirs:
        ours.settimeout(PATIENCE_S)
        process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            cwd=ROOT,
            env=os.environ | ONE_THREAD,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        try:
            assert ours.recv(16) == b"ready"
            yield Forks(ours)
        finally:
            ours.close()
            process.wait()


if __name__ == "__main__":
    main()
