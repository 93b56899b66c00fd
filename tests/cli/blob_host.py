"""For `tests.forks`: the fake model; blobs lie at a host of the tests, not at Azure's."""

from __future__ import annotations

import functools

import pytest

from geosam_stac.sources import access
from tests import fakes
from tests.forks import Tell


def prepare(_: Tell, *, host: str) -> None:
    """In the child."""
    patch = pytest.MonkeyPatch()
    fakes.install(patch)
    signer = functools.partial(access.PlanetaryComputer, blob_host=host)
    patch.setattr(access, "PlanetaryComputer", signer)
