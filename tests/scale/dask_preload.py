"""`dask worker --preload tests.scale.dask_preload`: this worker encodes with the fake model."""

from __future__ import annotations

import os
import time

import pytest

from tests import fakes

fake = fakes.install(pytest.MonkeyPatch())
seconds = float(os.environ.get("FAKE_SECONDS", "0"))
fake.before = lambda chips: time.sleep(seconds)
