"""The command line with the fake model; blobs lie at the host that argv[1] says, not at Azure's."""

from __future__ import annotations

import functools
import sys

import pytest

from geosam_stac.cli import main
from tests import fakes

if __name__ == "__main__":
    patch = pytest.MonkeyPatch()
    fakes.install(patch)
    from geosam_stac.sources import access

    signer = functools.partial(access.PlanetaryComputer, blob_host=sys.argv[1])
    patch.setattr(access, "PlanetaryComputer", signer)
    main(sys.argv[2:])
