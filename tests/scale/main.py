"""The command line with the fake model: `main.py INPUT_PX SECONDS_A_BATCH ARGV...`.

`FAKE_DOOM=BATCH:MARK`: in that batch, from 1 on, it writes the file MARK and waits to be killed;
without MARK the batch fails for the time being.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from geosam_stac.cli import main
from geosam_stac.errors import TemporaryError
from tests import fakes


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


if __name__ == "__main__":
    fake = fakes.install(pytest.MonkeyPatch(), input_px=int(sys.argv[1]))
    seconds = float(sys.argv[2])
    doom = os.environ.get("FAKE_DOOM")
    fake.before = doomed(doom) if doom else lambda chips: time.sleep(seconds)
    main(sys.argv[3:])
