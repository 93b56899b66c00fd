"""`dask worker --preload tests.scale.dask_preload`: this worker encodes with the fake model."""

from __future__ import annotations

from tests.scale.main import prepare

prepare()
