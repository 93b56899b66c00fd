"""Command lines as processes of their own, at a fork's price: for runs that are killed.

A process imports torch and the project once (seconds), starts no thread, and forks a child for each
run (milliseconds). The child is a run like any other: the real `main`, the real handlers of
signals, its own end by the interpreter; only the model is `tests.fakes`. It tells of each change
of its output through a pipe, and it can send itself a signal at the n-th of them, in the midst of
a write too. Run as `python -m tests.faults.forks FD`, by `forks`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Where in a change a signal comes: of a file also with half of its bytes written, or all of them
#: under a name that is not yet its own.
PHASES = ("before", "half", "unnamed", "after")
CHANGES = ("put", "create", "delete", "delete_tree")
#: Arrow's own allocator and BLAS have threads from the start, which a fork would lose.
ONE_THREAD = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "OMP_NUM_THREADS": "1"}
#: No run takes as long, on any machine.
PATIENCE_S = 120.0


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


# The child's side


class _Watch:
    """Tells of every change of an output, and sends the signal at its point."""

    def __init__(self, tell: Callable[[str], None], point: Point | None) -> None:
        self._tell, self._point = tell, point
        self._lock = threading.Lock()
        self._count = 0
        self._mine = threading.local()  # the phase of the change that this thread is in

    def install(self) -> None:
        from geosam_stac import storage

        for backend in (storage._LocalBackend, storage._ObjectBackend):
            for name in CHANGES:
                setattr(backend, name, self._watched(name, getattr(backend, name)))
        storage._write_durably = self._written(storage._write_durably)

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
            splits = name in ("put", "create") and type(backend).__name__ == "_LocalBackend"
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

    def _send(self) -> None:
        assert self._point is not None
        self._mine.phase = None
        self._tell("signal")
        os.kill(os.getpid(), self._point.signum)


def _run(request: dict, pipe: int) -> None:
    """In the child: become the command, until its end."""
    from geosam_stac.cli import main
    from tests import fakes

    os.environ.clear()
    os.environ.update(request["environ"])
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)

    def tell(text: str) -> None:
        os.write(pipe, f"{text}\n".encode())

    fakes.install(pytest.MonkeyPatch()).before = lambda chips: tell(f"encode {chips}")
    point = request["point"]
    _Watch(tell, Point(**point) if point else None).install()
    code = 1
    try:
        main(request["argv"])
    except SystemExit as leave:
        code = leave.code
    except BaseException:  # noqa: BLE001 - as the interpreter shows it
        traceback.print_exc()
    # The interpreter's own end, but for freeing the memory: all of the parent's would be copied.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


def _import_all() -> None:
    """What a run imports, so that no child must."""
    import geosam_stac
    from geosam_stac.cli import app

    for package in ("", "cli", "encoders", "features", "sources", "catalog"):
        folder = Path(geosam_stac.__path__[0]) / package
        for module in pkgutil.iter_modules([str(folder)]):
            name = ".".join(filter(None, ("geosam_stac", package, module.name)))
            if not name.endswith(("triton", "__main__")):
                importlib.import_module(name)
    app()
    for name in ("s3fs", "aiobotocore.session", "moto", "pyarrow.parquet"):
        importlib.import_module(name)


def _serve(link: socket.socket) -> None:
    while True:
        data, pipes, _, _ = socket.recv_fds(link, 1 << 20, 1)
        if not data:
            return
        child = os.fork()
        if child == 0:
            link.close()
            _run(json.loads(data), pipes[0])
        os.close(pipes[0])
        link.send(str(child).encode())
        if not link.recv(16):  # until it is waited for, nobody else gets its number
            return
        _, status = os.waitpid(child, 0)
        link.send(str(os.waitstatus_to_exitcode(status)).encode())


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


# The tests' side


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended: exit code (-9: by SIGKILL), output, changes told."""

    code: int
    out: str
    err: str
    told: list[str]

    @property
    def changes(self) -> list[str]:
        """Changes of the output: what, and the key."""
        return [line for line in self.told if line.split()[0] in CHANGES]

    @property
    def encoded(self) -> int:
        """Chips that the model was given."""
        return sum(int(line.split()[1]) for line in self.told if line.startswith("encode "))


class Running:
    """A run under way."""

    def __init__(self, link: socket.socket, pipe: int, pid: int, folder: Path) -> None:
        self._link, self._pipe, self._folder = link, pipe, folder
        self.pid = pid
        self._heard = b""

    def told(self) -> str:
        """All that it has told so far."""
        return self._heard.decode()

    def hear(self, text: str) -> bool:
        """Wait until it has told this; False: it has ended before."""
        while text not in self.told():
            if not self._more():
                return False
        return True

    def says(self, text: str) -> None:
        """Wait until this stands on its stderr."""
        deadline = time.monotonic() + PATIENCE_S
        err = self._folder / "err"
        while not (err.exists() and text in err.read_text()):
            assert time.monotonic() < deadline, err.read_text()
            select.select([], [], [], 0.02)

    def send(self, signum: int) -> None:
        """Send a signal; to one that has ended it does nothing."""
        os.kill(self.pid, signum)

    def wait(self) -> Ended:
        """Wait for its end."""
        while self._more():
            pass
        os.close(self._pipe)
        self._link.send(b"wait")
        code = int(self._link.recv(16))
        told = self.told().splitlines()
        out, err = ((self._folder / name).read_text() for name in ("out", "err"))
        return Ended(code=code, out=out, err=err, told=told)

    def _more(self) -> bool:
        ready, _, _ = select.select([self._pipe], [], [], PATIENCE_S)
        if not ready:
            os.kill(self.pid, signal.SIGKILL)
            raise AssertionError(f"it hangs: {(self._folder / 'err').read_text()}")
        part = os.read(self._pipe, 1 << 16)
        self._heard += part
        return bool(part)


class Forks:
    """Starts runs, one at a time."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link

    def start(
        self,
        argv: Sequence[object],
        folder: Path,
        *,
        point: Point | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Running:
        """Start a command line; its stdout and stderr go to files in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        request = {
            "argv": [str(word) for word in argv],
            "environ": dict(environ),
            "point": asdict(point) if point else None,
            "out": str(folder / "out"),
            "err": str(folder / "err"),
        }
        ours, theirs = os.pipe()
        socket.send_fds(self._link, [json.dumps(request).encode()], [theirs])
        os.close(theirs)
        return Running(self._link, ours, int(self._link.recv(16)), folder)


@contextlib.contextmanager
def forks() -> Iterator[Forks]:
    """Run the process that forks."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults.forks", str(theirs.fileno())]
    with ours:
        ours.settimeout(PATIENCE_S)
        with theirs:
            process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], cwd=ROOT, env=os.environ | ONE_THREAD
            )
        try:
            assert ours.recv(16) == b"ready"
            yield Forks(ours)
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
