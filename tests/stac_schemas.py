"""Offline validation of STAC documents with the schemas of ../shared."""

from __future__ import annotations

import json
from pathlib import Path

import pystac
import pytest
from pystac.validation import set_validator
from pystac.validation.stac_validator import JsonSchemaSTACValidator

SCHEMAS = Path(__file__).resolve().parents[2] / "shared" / "schemas"


def validate(document: dict) -> list[str]:
    """Validate an Item, Collection or Catalog; returns the URLs of the schemas that were used.

    Skips the test where ../shared is absent. A schema that is not there is an error: nothing is
    fetched.
    """
    if not (SCHEMAS / "map.json").is_file():
        pytest.skip("../shared/schemas is not here: STAC documents cannot be validated offline")
    validator = JsonSchemaSTACValidator()
    for url, path in json.loads((SCHEMAS / "map.json").read_text()).items():
        validator.schema_cache[url] = json.loads((SCHEMAS / path).read_text())
    set_validator(validator)
    return pystac.validation.validate_dict(document)
