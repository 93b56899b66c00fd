"""What is told where a derived band is computed of stored values that are not physical ones."""

from __future__ import annotations

import pytest

from geosam_stac.config import EncodeConfig
from geosam_stac.derive import Expression
from geosam_stac.events import Notice
from geosam_stac.sources import open_scene, parse_item
from geosam_stac.sources.unscaled import unscaled_notice
from geosam_stac.types import Band
from tests import rasters
from tests.fakes import fake_session


def bands(*names, scale=1.0, offset=0.0):
    return tuple(
        Band(name=name, asset=name, index=1, href="a", source_href="a", scale=scale, offset=offset)
        for name in names
    )


def told(text, *names, is_index=False, **factors):
    expression = Expression.index(text) if is_index else Expression.parse(text)
    return unscaled_notice(expression, bands(*names, **factors), is_index=is_index)


def test_an_offset_is_told():
    notice = told("(nir - red) / (nir + red)", "nir", "red", scale=1e-4, offset=-0.1)
    assert notice == (
        "--expression is computed of the values as they are stored, but the Item gives "
        "nir (scale 0.0001, offset -0.1), red (scale 0.0001, offset -0.1): "
        "give --scaled, unless the pixels hold physical values already"
    )


@pytest.mark.parametrize(
    ("text", "factors"),
    [
        ("(nir - red) / (nir + red)", {}),
        # A ratio does not see a scale, and who multiplies by hand may mean stored values.
        ("(nir - red) / (nir + red)", {"scale": 1e-4}),
        ("2.5 * nir - red", {"scale": 1e-4}),
        # An offset that falls out.
        ("nir - red", {"offset": -0.1}),
    ],
)
def test_what_makes_no_difference_is_not_told(text, factors):
    assert told(text, "nir", "red", **factors) is None


@pytest.mark.parametrize(
    ("index", "names", "factors", "is_told"),
    [
        ("NDVI", ("nir", "red"), {"scale": 1e-4}, False),
        ("NDVI", ("nir", "red"), {"scale": 1e-4, "offset": -0.1}, True),
        ("EVI", ("nir", "red", "blue"), {}, False),
        ("EVI", ("nir", "red", "blue"), {"scale": 1e-4}, True),  # constants of reflectance
        ("SAVI", ("nir", "red"), {"scale": 2.75e-5, "offset": -0.2}, True),
    ],
)
def test_an_index_is_of_physical_values(index, names, factors, is_told):
    notice = told(index, *names, is_index=True, **factors)
    assert (notice is not None) is is_told
    assert notice is None or notice.startswith("--index is computed of the values as they are")


def item(offset=-0.1, collection=None, **fields):
    facts = {"data_type": "uint16", "nodata": 0, "raster:scale": 1e-4, "raster:offset": offset}
    place = rasters.projection(rasters.NORTH_UP, (80, 100))
    assets = {
        name: rasters.asset(
            f"https://data.invalid/{name}.tif",
            bands=[{"name": code, "eo:common_name": name}],
            **facts,
            **place,
        )
        for name, code in (("red", "B04"), ("nir", "B08"))
    }
    scl = {"bands": [{"name": "scl"}], "data_type": "uint8", "nodata": 0}
    assets["scl"] = rasters.asset("https://data.invalid/scl.tif", **scl, **place)
    document = rasters.document(assets, **fields)
    if collection is not None:
        document["collection"] = collection
    return parse_item(document, href=None)


def notices(**options):
    return open_scene(item(), EncodeConfig(**options), read_headers=False).notices


def test_the_scene_tells_it_unless_scaled():
    (notice,) = notices(index="NDVI")
    assert "nir (scale 0.0001, offset -0.1)" in notice
    (notice,) = notices(expression="nir / red")
    assert notice.startswith("--expression")
    assert notices(index="NDVI", scaled=True) == ()
    assert notices(bands=("red", "nir")) == ()


def test_the_plan_has_it_and_a_run_sends_it(tmp_path, fake_model):
    heard = []
    session = fake_session(tmp_path, heard, index="NDVI")
    plan = session.plan(item())
    assert any("--scaled" in notice for notice in plan.notices)
    from geosam_stac.job import Job

    scene = session.scene(item(), read_headers=False)
    Job.of(session, scene, session.config)
    assert any(isinstance(event, Notice) and "--scaled" in event.message for event in heard)


def test_an_expression_of_a_profile_was_written_for_stored_values(tmp_path, fake_model):
    links = [{"rel": "self", "href": "https://earth-search.aws.element84.com/v1/x"}]
    mine = item(collection="sentinel-2-c1-l2a", links=links)
    session = fake_session(tmp_path, preset="ndvi")
    config = session.in_force(mine)
    assert config.expression is not None
    assert session.scene(mine, read_headers=False).notices == ()
    # The same one, typed, is the user's own.
    session = fake_session(tmp_path, expression="(nir - red) / (nir + red)")
    assert len(session.scene(mine, read_headers=False).notices) == 1
