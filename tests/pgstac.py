"""A real STAC API on loopback: stac-fastapi-pgstac on PostGIS, with Transactions.

Each session has its own server: a cluster in a temporary folder, and the API as a subprocess.
Both end by process id, also when the tests fail; the kernel ends them if the tests are killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.servers import free_port

ROOT = Path(__file__).parent.parent
START_S = 60
STOP_S = 15
USER = "pgstac"
# The API needs none of our environment; what PG* or STAC settings a developer has must not get in.
KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "TMPDIR")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StacApi:
    """`url`: the landing page. `dsn_env`: PG* variables of its database. `psql`: its client."""

    url: str
    dsn_env: Mapping[str, str]
    psql: Path

    def post_collection(self, document: Mapping[str, Any]) -> None:
        """Create a Collection through the Transactions extension."""
        response = requests.post(f"{self.url}/collections", json=document, timeout=30)
        response.raise_for_status()

    def post_items(self, collection: str, documents: Iterable[Mapping[str, Any]]) -> None:
        """Create Items through the Transactions extension."""
        features = {"type": "FeatureCollection", "features": list(documents)}
        response = requests.post(
            f"{self.url}/collections/{collection}/items", json=features, timeout=30
        )
        response.raise_for_status()

    def insert_unchecked(self, document: Mapping[str, Any]) -> None:
        """Put an Item into the database that the API itself would refuse."""
        subprocess.run(
            [self.psql, "-qX", "-v", "ON_ERROR_STOP=1", "-v", f"item={json.dumps(document)}"],
            input="SET search_path TO pgstac, public; SELECT create_item(:'item'::jsonb);",
            env={**_environment(), **self.dsn_env},
            text=True,
            check=True,
            capture_output=True,
            timeout=30,
        )


@functools.cache
def missing() -> str | None:
    """Why the server cannot run on this machine, or None."""
    if not sys.platform.startswith("linux"):
        return "the STAC API's test server runs on Linux only"
    if _postgres_bin() is None:
        return "PostgreSQL is not installed (apt-get install postgresql-15 postgresql-15-postgis-3)"
    if not list(Path("/usr/share/postgresql").glob("*/extension/postgis.control")):
        return "PostGIS is not installed (apt-get install postgresql-15-postgis-3)"
    if os.getuid() == 0 and _postgres_user() is None:
        return "PostgreSQL refuses to run as root, and there is no user postgres"
    if _server_python() is None:
        return (
            "stac-fastapi-pgstac is not installed (python -m venv .venv-pgstac && "
            ".venv-pgstac/bin/pip install -r requirements-pgstac.txt)"
        )
    return None


@contextlib.contextmanager
def stac_api() -> Iterator[StacApi]:
    """Run an empty STAC API; takes about 6 s to start."""
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="geosam-stac-pgstac-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        dsn_env = _start_postgres(stack, folder)
        _migrate(dsn_env, folder)
        url = _start_api(stack, folder, dsn_env)
        bin_folder = _postgres_bin()
        assert bin_folder is not None
        yield StacApi(url=url, dsn_env=dsn_env, psql=bin_folder / "psql")


@pytest.fixture(scope="session")
def pgstac() -> Iterator[StacApi]:
    """The session's STAC API; the tests that share it use Collections of their own."""
    if reason := missing():
        pytest.skip(reason)
    with stac_api() as api:
        yield api


def _start_postgres(stack: contextlib.ExitStack, folder: Path) -> dict[str, str]:
    bin_folder = _postgres_bin()
    assert bin_folder is not None
    data = folder / "data"
    data.mkdir(mode=0o700)
    user: str | None = None
    if os.getuid() == 0:
        user = _postgres_user()
        shutil.chown(data, user)
    subprocess.run(
        [
            *_as_user(user),
            *(bin_folder / "initdb", "-D", data, "-U", USER, "--auth=trust", "--no-sync"),
            *("--encoding=UTF8", "--no-locale"),
        ],
        check=True,
        cwd=folder,
        env=_environment(),
        capture_output=True,
        timeout=START_S,
    )
    port = free_port()
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": "",
        # Nothing of it need survive.
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    command = [*_as_user(user), bin_folder / "postgres", "-D", data, *options]
    log = folder / "postgres.log"
    # SIGINT is PostgreSQL's fast shutdown.
    process = _start(stack, command, log, folder, _environment(), signal.SIGINT)
    env = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": USER}
    env |= {"PGPASSWORD": "none", "PGDATABASE": "postgres"}
    ready = [bin_folder / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
    _wait(process, log, lambda: subprocess.run(ready, check=False).returncode == 0)
    return env


def _migrate(dsn_env: Mapping[str, str], folder: Path) -> None:
    python = _server_python()
    assert python is not None
    done = subprocess.run(
        [python, "-m", "pypgstac.pypgstac", "migrate"],
        env={**_environment(), **dsn_env},
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=START_S,
    )
    assert done.returncode == 0, f"pypgstac migrate failed: {done.stderr[-3000:]}"


def _start_api(stack: contextlib.ExitStack, folder: Path, dsn_env: Mapping[str, str]) -> str:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = {**_environment(), **dsn_env, "ENABLE_TRANSACTIONS_EXTENSIONS": "TRUE"}
    app = "stac_fastapi.pgstac.app:create_app"
    command = [
        *(_server_python(), "-m", "uvicorn", app, "--factory"),
        *("--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"),
    ]
    log = folder / "api.log"
    process = _start(stack, command, log, folder, env, signal.SIGTERM)

    def answers() -> bool:
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(url, timeout=5).ok
        return False

    _wait(process, log, answers)
    return url


def _start(
    stack: contextlib.ExitStack,
    command: list[Any],
    log: Path,
    folder: Path,
    env: Mapping[str, str],
    stop_signal: signal.Signals,
) -> subprocess.Popen[bytes]:
    if (setpriv := shutil.which("setpriv")) and command[0] != setpriv:
        command = [setpriv, *command]
    if command[0] == setpriv:
        # If the tests are killed, the kernel ends the server too.
        command = [setpriv, "--pdeathsig", stop_signal.name[3:], *command[1:]]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(part) for part in command], cwd=folder, env=dict(env), stdout=out, stderr=out
        )
    stack.callback(_stop, process, stop_signal)
    return process


def _stop(process: subprocess.Popen[bytes], stop_signal: signal.Signals) -> None:
    process.send_signal(stop_signal)  # does nothing once it has ended
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGQUIT)  # PostgreSQL's immediate shutdown: children too
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], log: Path, ready: Any) -> None:
    end = time.monotonic() + START_S
    while not ready():
        ended = process.poll() is not None
        if ended or time.monotonic() > end:
            said = log.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"{process.args} {'ended' if ended else 'did not start'}: {said}")
        time.sleep(0.05)


def _as_user(user: str | None) -> list[str]:
    if user is None:
        return []
    setpriv = shutil.which("setpriv")
    assert setpriv is not None, "setpriv (util-linux) is needed to start PostgreSQL as root"
    return [setpriv, f"--reuid={user}", f"--regid={user}", "--init-groups"]


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}


@functools.cache
def _postgres_bin() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@functools.cache
def _postgres_user() -> str | None:
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres").pw_name
    return None


@functools.cache
def _server_python() -> Path | None:
    """The interpreter that has the server: this one, or the one of `.venv-pgstac`."""
    for python in (Path(sys.executable), ROOT / ".venv-pgstac" / "bin" / "python"):
        command = [python, "-c", "import stac_fastapi.pgstac.app, pypgstac, uvicorn"]
        with contextlib.suppress(OSError):
            if not subprocess.run(command, check=False, capture_output=True).returncode:
                return python
    return None
