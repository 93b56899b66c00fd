"""The command line with the fake model: `main.py INPUT_PX SECONDS_A_BATCH ARGV...`."""

from __future__ import annotations

import sys
import time

import pytest

from geosam_stac.cli import main
from tests import fakes

if __name__ == "__main__":
    fake = fakes.install(pytest.MonkeyPatch(), input_px=int(sys.argv[1]))
    seconds = float(sys.argv[2])
    fake.before = lambda chips: time.sleep(seconds)
    main(sys.argv[3:])
