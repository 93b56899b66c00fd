"""The command line with the fake model, which takes as many seconds a chip as argv[1] says."""

from __future__ import annotations

import sys
import time

import pytest

from geosam_stac.cli import main
from tests import fakes

if __name__ == "__main__":
    seconds = float(sys.argv[1])
    fake = fakes.install(pytest.MonkeyPatch())
    fake.before = lambda chips: time.sleep(seconds)
    main(sys.argv[2:])
