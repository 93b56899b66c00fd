"""The command line with the fake model: `python -m tests.scale.main ARGV...`.

What the model does stands in the environment.
`FAKE_INPUT_PX`: the model's input; `FAKE_SECONDS`: what a batch takes. `FAKE_DOOM=BATCH:MARK`: in
that batch, from 1 on, it writes the file MARK and waits to be killed; without MARK the batch fails
for the time being.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from geosam_stac.cli import main
from geosam_stac.errors import TemporaryError
from tests import fakes
from tests.forks import Forks, Running, Tell
from tests.scale.outputs import environment


def doomed(text: str) -> Callable[[int], None]:
    """What happens before each batch."""
    batch, _, mark = text.partition(":")
    numbers = itertools.count(1)

    def before(_: int) -> None:
        if next(numbers) != int(batch):
            return
        if not mark:
            raise TemporaryError("the device was lost")
        Path(mark).touch()
        time.sleep(300)

    return before


def prepare(_: Tell = lambda text: None) -> None:
    """Put the fake model in its place: in this process, or in a child of `tests.forks`."""
    input_px = int(os.environ.get("FAKE_INPUT_PX", fakes.INPUT_PX))
    fake = fakes.install(pytest.MonkeyPatch(), input_px=input_px)
    seconds = float(os.environ.get("FAKE_SECONDS", "0"))
    doom = os.environ.get("FAKE_DOOM")
    fake.before = doomed(doom) if doom else lambda chips: time.sleep(seconds)


def start(runs: Forks, *argv: object, **more: str) -> Running:
    """Start it in a child of `tests.forks`, with more in its environment."""
    return runs.start(argv, prepare="tests.scale.main", environ=environment(**more))


if __name__ == "__main__":
    prepare()
    main()
