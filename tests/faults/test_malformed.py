"""Items that are none: 40 that are kept, 500 that are made. Refused by their JSON path, or fine."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geosam_stac.errors import DataError
from geosam_stac.planning import Plan
from geosam_stac.session import Session
from geosam_stac.sources.access import accesses
from tests import fakes
from tests.cli.conftest import cli  # noqa: F401  (a fixture)
from tests.quick import quick

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "data" / "bad_items"
SHARED = ROOT.parent / "shared" / "data" / "items"
DRY_RUN = ("--dry-run", "--model", "sam2.1-hiera-tiny", "--checkpoint", "untrained", "--json")
#: What is wrong (the fixture's name) and the JSON path that its message must name.
BAD = {
    "array-instead-of-item": "$",
    "asset-null": "$.assets.image",
    "assets-empty": "$.assets",
    "assets-list": "$.assets",
    "bands-object": "$.assets.image.bands",
    "bands-twice": "$.assets.image.bands[1].name",
    "bbox-of-three": "$.bbox",
    "crs-file-of-proj": "$.properties.proj:code",
    "crs-unknown": "$.properties.proj:code",
    "datetime-before-the-year-1": "$.properties.datetime",
    "datetime-missing": "$.properties.start_datetime",
    "datetime-month-13": "$.properties.datetime",
    "end-datetime-object": "$.properties.end_datetime",
    "geometry-coordinates-text": "$.geometry.coordinates[0][1][0]",
    "geometry-kind-unknown": "$.geometry.type",
    "geometry-nan": "$.geometry.coordinates[0][0][1]",
    "href-list": "$.assets.image.href",
    "href-lone-surrogate": "$.assets.image.href",
    "href-missing": "$.assets.image.href",
    "href-nul": "$.assets.image.href",
    "id-empty": "$.id",
    "id-number": "$.id",
    "link-without-href": "$.links[0]",
    "links-object": "$.links",
    "nested-300-levels": "$.properties.proj:projjson.a",
    "nodata-400-digits": "$.assets.image.nodata",
    "properties-null": "$.properties",
    "roles-text": "$.assets.image.roles",
    "shape-huge": "$.assets.image.proj:shape[1]",
    "shape-negative": "$.assets.image.proj:shape[0]",
    "shape-of-three": "$.assets.image.proj:shape",
    "stac-version-number": "$.stac_version",
    "stac-version-words": "$.stac_version",
    "transform-beyond-the-earth": "$.assets.image.proj:transform",
    "transform-infinity": "$.assets.image.proj:transform[5]",
    "transform-not-invertible": "$.assets.image.proj:transform",
    "transform-of-five": "$.assets.image.proj:transform",
    "transform-text": "$.assets.image.proj:transform[2]",
    "type-collection": "$.type",
    "type-missing": "$.type",
}


def test_the_corpus_is_whole():
    assert {path.stem for path in FIXTURES.glob("*.json")} == set(BAD)
    assert len(BAD) == 40


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_item_is_refused_by_its_json_path(cli, name, fake_model):  # noqa: F811
    outcome = cli("encode", "--item", FIXTURES / f"{name}.json", *DRY_RUN)
    assert outcome.code == 65, outcome
    assert outcome.out == ""
    path = BAD[name]
    assert any(f"{path}{after}" in outcome.err for after in (" ", ")", ".a ", ".a.a ")), outcome.err
    assert "Traceback" not in outcome.err
    assert fake_model.loaded == []


def test_a_document_that_holds_itself(fake_model, tmp_path):
    document = json.loads((ROOT / "catalogs" / "sample" / "item.json").read_text())
    document["properties"]["self"] = document
    with (
        fakes.fake_session(tmp_path) as session,
        pytest.raises(DataError, match=r"\$\.properties\.self\.properties\.self is wrong"),
    ):
        session.plan(document)


# Mutations


def documents() -> list[dict[str, Any]]:
    """Valid Items, as they are in the wild where those are here; no href leads to the network."""
    found = [json.loads((ROOT / "catalogs" / "sample" / "item.json").read_text())]
    found[0]["assets"]["image"]["href"] = str(ROOT / "catalogs" / "sample" / "landscape.tif")
    for path in sorted(SHARED.glob("*.json")):
        document = json.loads(path.read_text())
        # A relative href would be one of the API's.
        document["links"] = [{"rel": "self", "href": f"/nowhere/{path.name}"}]
        for key, asset in document["assets"].items():
            suffix = asset["href"].partition("?")[0].rpartition(".")[2]
            asset["href"] = f"/nowhere/{key}.{suffix}"
        found.append(document)
    return found


VALID = documents()
SURROGATE = "\ud800"
# What stands in a field's place.
WRONG = st.one_of(
    st.sampled_from(
        [
            *(None, True, False, 0, -1, 1e-320, 1e300, -1e300, 10**18, 10**400),
            *(math.nan, math.inf, -math.inf, "", "x", "0", "nan", SURROGATE, "a\0b", "../../x"),
            *([], {}, [None], [[]], [{}], {"": None}, {"a": {"b": []}}, [1, 2, 3], ["x", "x"]),
            *("EPSG:0", "EPSG:999999", "EPSG:4978", "+proj=utm", "GEOGCS[", "IAU_2015:30100"),
            *("9999-12-31T23:59:59-12:00", "2024-02-30", "12", {"type": "Polygon"}),
        ]
    ),
    st.text(max_size=8),
    st.lists(st.floats(-1e6, 1e6) | st.none(), max_size=9),
)


def places(value: Any, keys: tuple = ()) -> list[tuple]:
    """The keys of everything inside a document that is of use, outermost first."""
    found = [keys] if keys else []
    inner = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list) and len(value) < 20:
        inner = enumerate(value)
    for key, part in inner:
        found += places(part, (*keys, key))
    return found


def weight(keys: tuple) -> int:
    """Fields that are read come up more often than the rest of a long Item."""
    text = "/".join(map(str, keys))
    return 8 if len(keys) == 1 or "proj:" in text or "bands" in text or "href" in text else 1


PLACES = [[keys for keys in places(document) for _ in range(weight(keys))] for document in VALID]


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """One of the valid Items with one to three things wrong in it."""
    which = draw(st.integers(0, len(VALID) - 1))
    document = copy.deepcopy(VALID[which])
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(PLACES[which]))
        parent: Any = document
        try:
            for key in path:
                parent = parent[key]
            if draw(st.integers(0, 4)) == 0:
                del parent[last]
            else:
                parent[last] = draw(WRONG)
        except (LookupError, TypeError):  # an earlier one has taken the place away
            continue
    return document


@pytest.fixture
def session(fake_model, tmp_path) -> Session:
    # A plan counts chips, it does not list them.
    session = fakes.fake_session(tmp_path, out=None, max_chips=10**12)
    session.retries = quick(1)  # nothing here may pass at another try
    session.access = accesses(profile=None, signer=None, environ={})
    return session


def test_valid_items_have_a_plan(session):
    for document in VALID:
        assert session.plan(copy.deepcopy(document)).chips > 0


def test_500_mutated_items_are_refused_by_their_json_path_or_fine(session, record_property):
    seen = {"refused": 0, "fine": 0}

    @settings(
        max_examples=500,
        derandomize=True,
        database=None,
        deadline=10_000,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated())
    def check(document: dict[str, Any]) -> None:
        try:
            # As a file is read: through JSON, which writes and reads NaN too.
            plan = session.plan(json.loads(json.dumps(document)))
        except DataError as error:
            assert error.exit_code == 65
            assert "$" in str(error), error
            seen["refused"] += 1
            return
        assert isinstance(plan, Plan)
        assert plan.chips >= 1
        assert plan.bytes_to_read >= 0
        assert math.isfinite(plan.resolution)
        json.dumps(plan.as_dict(), allow_nan=False)
        seen["fine"] += 1

    check()
    print(seen)
    record_property("seen", seen)
    assert seen["refused"] > 100
    assert sum(seen.values()) >= 500
