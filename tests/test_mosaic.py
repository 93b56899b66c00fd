"""Chips on one grid: places, weights, gaps."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from geosam_stac.grid import chip_refs, chip_shape, make_grid
from geosam_stac.mosaic import blend, content_of, make_cells
from geosam_stac.radiometry import fit_shape

AFFINE = Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_200_000.0)
INPUT_PX, STRIDE_PX = 64, 4


def laid_out(shape, *, chip_px=64, stride_px=32, affine=AFFINE):
    """The chips of a scene and its cells, for a model of 64 px with cells of 4 px."""
    grid = make_grid(GeoBox(shape, affine, "EPSG:32614"), chip_px=chip_px, stride_px=stride_px)
    size = chip_shape(grid)
    cells = make_cells(
        grid.geobox, size, content_px=fit_shape(*size, INPUT_PX), stride_px=STRIDE_PX
    )
    return list(chip_refs(grid)), cells


def embedded(ref, cells, field):
    """What an encoder would give of a field over the scene: its value at each cell's centre."""
    rows, cols = (np.arange(16) + 0.5) * cells.cell_px[0], (np.arange(16) + 0.5) * cells.cell_px[1]
    whole = field(rows[:, None] + ref.window.row_off, cols[None, :] + ref.window.col_off)
    return content_of(np.stack([whole] * 3).astype(np.float32), cells)


def whole(cells, chips):
    strips = list(blend(cells, chips))
    starts = [row for row, _, _ in strips]
    assert starts == list(np.cumsum([0] + [len(covered) for _, _, covered in strips[:-1]]))
    values = np.concatenate([part for _, part, _ in strips], axis=1)
    covered = np.concatenate([part for _, _, part in strips])
    assert values.shape[1:] == covered.shape == cells.shape
    return values, covered


def centres(cells):
    rows = (np.arange(cells.shape[0]) + 0.5) * cells.cell_px[0]
    cols = (np.arange(cells.shape[1]) + 0.5) * cells.cell_px[1]
    return rows[:, None], cols[None, :]


def plane(row, col):
    return 3.0 * row + 2.0 * col + 1


@pytest.mark.parametrize(
    ("shape", "chip_px", "stride_px"),
    [
        ((160, 224), 64, 32),  # all on whole cells
        ((150, 213), 64, 32),  # the last row and column are flush with the edge
        ((131, 97), 64, 23),  # none but the first on a whole cell
        ((100, 140), 32, 16),  # chips enlarged twice
        ((50, 200), 64, 40),  # padded below
        ((37, 23), 64, 32),  # one chip, padded at the right
    ],
)
def test_a_plane_stays_a_plane(shape, chip_px, stride_px):
    refs, cells = laid_out(shape, chip_px=chip_px, stride_px=stride_px)
    values, covered = whole(cells, ((r.window, embedded(r, cells, plane)) for r in refs))
    assert covered.all()
    rows, cols = centres(cells)
    # Half a cell at the outermost cells of a chip that does not lie on the grid: no more is known.
    error = np.abs(values[0] - plane(rows, cols)) / (3 * cells.cell_px[0] + 2 * cells.cell_px[1])
    assert error.max() <= 0.5
    # At the scene's edges only: inside, a neighbour's middle outweighs a chip's edge.
    assert error[2:-2, 2:-2].max(initial=0) < 0.06
    assert np.array_equal(values[0], values[2])


def test_aligned_chips_are_taken_over_exactly():
    refs, cells = laid_out((64, 64))
    values, _ = whole(cells, [(refs[0].window, embedded(refs[0], cells, plane))])
    np.testing.assert_allclose(values, embedded(refs[0], cells, plane), rtol=1e-6)


def test_corners_lie_within_half_a_cell_of_the_scenes():
    for shape in ((160, 224), (150, 213), (131, 97), (61, 1000), (3, 3)):
        _, cells = laid_out(shape)
        scene = GeoBox(shape, AFFINE, "EPSG:32614").extent.boundingbox
        mosaic = cells.geobox.extent.boundingbox
        assert (mosaic.left, mosaic.top) == (scene.left, scene.top)
        assert abs(mosaic.right - scene.right) <= 10 * cells.cell_px[1] / 2
        assert abs(mosaic.bottom - scene.bottom) <= 10 * cells.cell_px[0] / 2


def test_a_rotated_grid_stays_rotated():
    turned = AFFINE @ Affine.rotation(30)
    _, cells = laid_out((128, 64), affine=turned)
    expected = turned @ Affine.scale(4)
    np.testing.assert_allclose(list(cells.geobox.affine)[:6], list(expected)[:6])
    assert cells.geobox.shape == (32, 16)


def test_between_two_chips_that_disagree_there_is_no_step():
    refs, cells = laid_out((64, 96))
    levels = {"chip_000000": 0.0, "chip_000001": 1.0}
    chips = [(r.window, np.full((3, 16, 16), levels[r.chip_id], np.float32)) for r in refs]
    values, _ = whole(cells, chips)
    row = values[0, 8]
    assert row[0] == 0
    assert row[-1] == 1
    assert (np.diff(row) >= 0).all()
    assert np.diff(row).max() < 0.14  # eight cells of overlap


def test_a_chip_that_is_missing_leaves_a_hole_only_where_it_was_alone():
    refs, cells = laid_out((64, 160), stride_px=64)
    assert [r.window.col_off for r in refs] == [0, 64, 96]
    chips = [(r.window, embedded(r, cells, plane)) for r in refs]
    _, covered = whole(cells, [chips[0], chips[2]])
    assert covered[:, :16].all()
    assert not covered[:, 16:24].any()
    assert covered[:, 24:].all()


def test_rows_without_chips_come_too():
    refs, cells = laid_out((320, 64), stride_px=64)
    chips = [(r.window, embedded(r, cells, plane)) for r in refs]
    values, covered = whole(cells, [chips[1], chips[3]])
    assert (
        covered.any(axis=1).tolist()
        == [False] * 16 + [True] * 16 + [False] * 16 + [True] * 16 + [False] * 16
    )
    assert not values[:, ~covered].any()
    assert not whole(cells, [])[1].any()


def test_memory_holds_one_row_of_chips():
    refs, cells = laid_out((64 * 40, 64))
    heights = [
        len(covered)
        for _, _, covered in blend(cells, ((r.window, embedded(r, cells, plane)) for r in refs))
    ]
    assert sum(heights) == 640
    assert max(heights) <= 16


def test_chips_out_of_order_are_a_defect():
    refs, cells = laid_out((128, 64))
    chips = [(r.window, embedded(r, cells, plane)) for r in refs]
    with pytest.raises(ValueError, match="sorted"):
        list(blend(cells, chips[::-1]))
