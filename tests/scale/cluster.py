"""A Dask cluster with the fake model, as processes of their own on loopback."""

from __future__ import annotations

import json
import time
from pathlib import Path

from geosam_stac.scale.dask import connect
from tests.forks import Forks, Running
from tests.scale.outputs import environment


class Cluster:
    """A scheduler and workers, as processes of their own on loopback."""

    def __init__(self, runs: Forks, folder: Path) -> None:
        self.runs, self.folder = runs, folder
        self.workers: list[Running] = []
        file = folder / "scheduler.json"
        self.scheduler = self._start(
            *("scheduler", "--host", "127.0.0.1", "--port", 0, "--no-dashboard"),
            *("--scheduler-file", file),
        )
        deadline = time.monotonic() + 60
        while not file.exists() or not file.read_text().strip():
            assert self.scheduler.poll() is None, self.scheduler.wait()
            assert time.monotonic() < deadline, "the scheduler does not start"
            time.sleep(0.02)
        self.address = json.loads(file.read_text())["address"]

    def _start(self, *argv: object, **more: str) -> Running:
        return self.runs.start(
            argv, prepare="tests.scale.main", main="dask.__main__", environ=environment(**more)
        )

    def add(self, *, seconds: float = 0.0, gpu: bool = True, input_px: int = 64) -> Running:
        """Start one more worker with the fake model."""
        resources = ("--resources", "GPU=1") if gpu else ()
        # No nanny: SIGKILL ends the worker, and nobody starts it again.
        worker = self._start(
            *("worker", self.address, "--nthreads", 1, "--no-nanny", "--no-dashboard"),
            *("--host", "127.0.0.1", *resources, "--local-directory", self.folder / "scratch"),
            FAKE_SECONDS=str(seconds),
            FAKE_INPUT_PX=str(input_px),
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
