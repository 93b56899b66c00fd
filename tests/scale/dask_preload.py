"""`dask worker --preload tests.scale.dask_preload`: this worker encodes with the fake model."""

from __future__ import annotations

import os
import time

import pytest

from tests import fakes

input_px = int(os.environ.get("FAKE_INPUT_PX", "64"))
fake = fakes.install(pytest.MonkeyPatch(), input_px=input_px)
seconds = float(os.environ.get("FAKE_SECONDS", "0"))
fake.before = lambda chips: time.sleep(seconds)
