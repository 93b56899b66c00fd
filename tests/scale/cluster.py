"""A Dask cluster with the fake model, as processes of their own on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from geosam_stac.scale.dask import connect
from tests.scale.outputs import environment

ROOT = Path(__file__).resolve().parents[2]


class Cluster:
    """A scheduler and workers, as processes of their own on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._start(
            *("scheduler", "--host", "127.0.0.1", "--port", 0, "--no-dashboard"),
            *("--scheduler-file", self.file),
        )
        deadline = time.monotonic() + 60
        while not self.file.exists() or not self.file.read_text().strip():
            assert time.monotonic() < deadline, "the scheduler does not start"
            time.sleep(0.1)
        self.address = json.loads(self.file.read_text())["address"]

    def _start(self, *argv: object, **more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-W", "ignore", "-m", "dask.__main__", *map(str, argv)]
        with (self.folder / "cluster.log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment(**more), stdout=log, stderr=log
            )

    def add(
        self, *, seconds: float = 0.0, gpu: bool = True, input_px: int = 64
    ) -> subprocess.Popen[bytes]:
        """Start one more worker with the fake model."""
        resources = ("--resources", "GPU=1") if gpu else ()
        # No nanny: SIGKILL ends the worker, and nobody starts it again.
        worker = self._start(
            *("worker", self.address, "--nthreads", 1, "--no-nanny", "--no-dashboard"),
            *("--host", "127.0.0.1", "--preload", "tests.scale.dask_preload", *resources),
            *("--local-directory", self.folder / "scratch"),
            FAKE_SECONDS=str(seconds),
            FAKE_INPUT_PX=str(input_px),
            PYTHONPATH=str(ROOT),
        )
        self.workers.append(worker)
        return worker

    def wait(self, count: int) -> None:
        """Until so many workers have reported."""
        with connect(self.address) as client:
            client.wait_for_workers(count, timeout=90)

    def close(self) -> None:
        """End all of them."""
        for process in (*self.workers, self.scheduler):
            process.kill()  # they would wait for each other
            process.wait()
