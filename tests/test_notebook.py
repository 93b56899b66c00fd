"""The example notebook, executed as a reader would: every cell, in order, in a fresh kernel."""

from __future__ import annotations

import base64
import io
import os
import shutil
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import rasterio
from nbclient import NotebookClient
from PIL import Image
from rasterio.warp import transform

from geosam_stac import figures

SAMPLE = Path(__file__).parent.parent / "catalogs" / "sample"
NOTEBOOK = SAMPLE / "encode-and-prompt.ipynb"


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Source of each code cell -> its outputs."""
    folder = tmp_path_factory.mktemp("notebook")
    for name in ("item.json", "landscape.tif"):
        shutil.copy(SAMPLE / name, folder)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # This interpreter, and not what a kernelspec of whoever runs the tests says.
    client = NotebookClient(
        notebook,
        timeout=240,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.create_kernel_manager()
    client.km.kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    own = {"GEOSAM_STAC_CACHE": str(folder / "cache"), "IPYTHONDIR": str(folder / "ipython")}
    root = str(SAMPLE.parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    client.execute(env=os.environ | own | {"PYTHONPATH": path})
    return {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def shown(cells, start):
    """The value of the cell whose last line is this, or begins with it: its media types."""
    last = {source.splitlines()[-1]: outputs for source, outputs in cells.items()}
    outputs = last.get(start) or next(last[line] for line in last if line.startswith(start))
    (result,) = (output for output in outputs if output.output_type == "execute_result")
    return result.data


def picture(data):
    return Image.open(io.BytesIO(base64.b64decode(data["image/png"])))


def test_it_is_committed_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert "weights are random" in notebook.cells[0].source


def test_nothing_fails_and_nothing_complains(cells):
    outputs = [output for each in cells.values() for output in each]
    assert not [output for output in outputs if output.output_type == "error"]
    told = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "Traceback" not in told
    assert "Warning" not in told
    # What is said of the weights, and nothing else.
    assert [line.split(":")[0] for line in told.splitlines()] == ["warning"]
    assert "untrained" in told


def test_results_scenes_and_chips_are_cards(cells):
    for name, facts in {
        "result": ("4 encoded", "untrained", "src='data:image/png;base64,"),
        "features": ("sam2.1-hiera-tiny", "EPSG:32632", "src='data:image/png;base64,"),
        "chip": ("chip_000001", "1024 x 1024 px"),
    }.items():
        data = shown(cells, name)
        for fact in facts:
            assert fact in data["text/html"], name
    assert "chip_000003" in shown(cells, "features.manifest")["text/html"]
    assert "channel" in shown(cells, "chip.to_xarray")["text/html"]


def test_progress_is_a_bar_of_four_chips(cells):
    (outputs,) = (outputs for source, outputs in cells.items() if "gs.encode(" in source)
    bars = [output for output in outputs if output.output_type == "display_data"]
    assert len(bars) == 1
    assert "application/vnd.jupyter.widget-view+json" in bars[0].data


def test_the_embeddings_are_a_picture_with_structure(cells):
    image = picture(shown(cells, "features.plot()"))
    assert image.size == (768, 768)
    pixels = np.asarray(image)
    with rasterio.open(SAMPLE / "landscape.tif") as raster:
        valid = raster.read_masks(1, out_shape=(768, 768)) != 0
    assert 0.05 < (~valid).mean() < 0.1
    # Transparent where the scene has no data, but for the width of a cell of the embedding.
    opaque = pixels[..., 3] == 255
    assert (opaque != valid).mean() < 0.01
    assert (pixels[~opaque][:, 3] == 0).mean() > 0.95  # but for the outlines of the chips
    assert (pixels[opaque][:, :3].std(axis=0) > 30).all()


def test_the_map_is_a_widget(cells):
    assert "application/vnd.jupyter.widget-view+json" in shown(cells, "features.explore()")


def test_the_prompt_gives_polygons_that_are_drawn(cells):
    table = shown(cells, "found.polygons")
    assert "area_m2" in table["text/html"]
    assert "POLYGON" in table["text/plain"]
    plain = np.asarray(picture(shown(cells, "features.plot()"))).astype(int)
    drawn = np.asarray(
        picture(shown(cells, "features.plot(found.polygons, points=[(LON, LAT)])"))
    ).astype(int)
    changed = np.abs(drawn - plain).max(axis=2) > 20
    # The mask lies in the chip that was prompted, the top right one; its outline is 2 px wide.
    assert changed[:384, 384:].mean() > 0.05
    assert not changed[:, :382].any()
    assert not changed[387:].any()


def test_the_click_lies_in_the_yellow_field(cells):
    (said,) = (source for source in cells if "LON, LAT = " in source)
    lon, lat = map(float, said.split("LON, LAT = ")[1].split("#")[0].split(","))
    with rasterio.open(SAMPLE / "landscape.tif") as raster:
        (x,), (y,) = transform("EPSG:4326", raster.crs, [lon], [lat])
        row, col = raster.index(x, y)
        red, green, blue, _ = next(raster.sample([(x, y)])).astype(int)
    assert min(red, green) > blue + 80
    image = picture(shown(cells, "features.plot(found.polygons, points=[(LON, LAT)], background"))
    dot = np.abs(np.asarray(image)[..., :3].astype(int) - figures.ON_COLOUR[:3]).max(axis=2) < 40
    rows, cols = dot.nonzero()
    assert 20 < len(rows) < 120
    assert abs(rows.mean() - row * 768 / 2048) < 2
    assert abs(cols.mean() - col * 768 / 2048) < 2


def test_polygons_are_written(cells):
    assert "mask.geojson" in shown(cells, "found.write")["text/plain"]
