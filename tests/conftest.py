"""Options and fixtures that all tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

# Beside other workers (of pytest-xdist), numbers take a share of the cores: more threads than that
# wait for each other. Before anything imports torch.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    share = max(1, (os.cpu_count() or 1) // workers)
    os.environ.setdefault("OMP_NUM_THREADS", str(share))

# A shell starts background jobs with Ctrl-C ignored, and what it starts inherits that; the command
# honours it. The tests send signals to processes that they start, so here it is as in a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from tests import fakes
from tests.forks import Forks, forks


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="run the tests marked slow, too")
    parser.addoption("--run-long", action="store_true", help="run the tests marked long, too")


def pytest_collection_modifyitems(config, items):
    for name, why in (("slow", "takes more than a minute"), ("long", "takes minutes")):
        if config.getoption(f"--run-{name}"):
            continue
        skip = pytest.mark.skip(reason=f"{name}: {why}; run with --run-{name}")
        for item in items:
            if item.get_closest_marker(name):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch, tmp_path_factory):
    """The options and the cache of whoever runs the tests have no say in them."""
    for name in list(os.environ):
        if name.startswith("GEOSAM_STAC_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GEOSAM_STAC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def runs() -> Iterator[Forks]:
    """Starts command lines as processes of their own, at a fork's price."""
    with forks() as found:
        yield found


@pytest.fixture
def fake_model(monkeypatch) -> fakes.FakeModel:
    """Sessions use `tests.fakes` in place of SAM 2.1 tiny."""
    return fakes.install(monkeypatch)
