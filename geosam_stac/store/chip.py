"""One stored chip: its place, and its tensors as numpy, torch or xarray. Read when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from affine import Affine
from odc.geo.geobox import GeoBox

from geosam_stac import cards
from geosam_stac.errors import DataError
from geosam_stac.radiometry import fit_shape
from geosam_stac.types import Window

if TYPE_CHECKING:
    import xarray
    from numpy.typing import NDArray

    from geosam_stac.features import FeatureMetadata

Loaded = tuple[Mapping[str, torch.Tensor], "FeatureMetadata"]


@dataclass(frozen=True, kw_only=True, repr=False)
class StoredChip:
    """A chip with features.

    `geobox`: its own grid; `window`: its place in px of the scene's grid. `row`, `col`: its place
    in the grid of chips. `input_px`: side of the model's input. `feature_href`, `bytes`, `sha256`:
    its file, relative to the manifest. `valid_fraction`: 0 to 1, of its pixels.
    """

    id: str
    row: int
    col: int
    geobox: GeoBox
    window: Window
    input_px: int
    valid_fraction: float
    feature_href: str
    bytes: int
    sha256: str
    load: Callable[[StoredChip], Loaded] = field(repr=False, compare=False)

    def __repr__(self) -> str:
        return cards.plain(self.id, self._facts())

    def _repr_html_(self) -> str:
        """What a notebook shows; the tensors are not read for it."""
        return cards.card(self.id, self._facts())

    def _facts(self) -> dict[str, object]:
        height, width = self.geobox.shape
        return {
            "CRS": self.geobox.crs,
            "bounds": ", ".join(f"{value:.8g}" for value in self.bounds),
            "shape": f"{width} x {height} px",
            "row, column": f"{self.row}, {self.col}",
            "valid": f"{100 * self.valid_fraction:.0f} %",
            "file": f"{self.feature_href} ({cards.megabytes(self.bytes)})",
        }

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north in the scene's CRS."""
        left, bottom, right, top = self.geobox.boundingbox.bbox
        return float(left), float(bottom), float(right), float(top)

    @property
    def content_px(self) -> tuple[int, int]:
        """Rows and columns of the model's input that the chip fills; the rest is padding."""
        height, width = self.geobox.shape
        return fit_shape(height, width, self.input_px)

    @property
    def metadata(self) -> FeatureMetadata:
        """What the feature file says beside its tensors."""
        return self.load(self)[1]

    @property
    def tensors(self) -> dict[str, NDArray[Any]]:
        """Name -> (C, h, w), not writable; bfloat16, which numpy has not, as float32.

        h and w are of the model's whole input, padding included: `to_xarray` leaves that out.

        Raises
        ------
        DataError
            The file is missing, unreadable, or has another sha256 than the manifest says.
        TemporaryError
            The store does not answer.
        """
        return {name: _as_numpy(tensor) for name, tensor in self.load(self)[0].items()}

    def to_torch(self) -> dict[str, torch.Tensor]:
        """Name -> (C, h, w) on the CPU, in the file's dtype (int8 as float32); copies."""
        return {name: tensor.clone() for name, tensor in self.load(self)[0].items()}

    def to_xarray(self, name: str = "image_embed") -> xarray.DataArray:
        """One tensor with the coordinates of its cells.

        Parameters
        ----------
        name
            One of `tensors`.

        Returns
        -------
        xarray.DataArray
            (channel, y, x): centres of the cells in the scene's CRS, which stands in `spatial_ref`
            (`.odc.geobox` knows the grid). Cells whose centre is padding are left out.

        Raises
        ------
        DataError
            There is no such tensor, or as `tensors`.
        """
        from odc.geo.xr import wrap_xr

        tensors = self.load(self)[0]
        if name not in tensors:
            raise DataError(
                f"the chip has no tensor {name!r}",
                chip=self.id,
                expected=", ".join(tensors),
            )
        values = _as_numpy(tensors[name])
        grid = self.cells(values.shape[1:])
        found: xarray.DataArray = wrap_xr(
            values[:, : grid.shape[0], : grid.shape[1]],
            grid,
            axis=1,
            chip_id=self.id,
        )
        # wrap_xr calls the first of three axes "band" or "time", whichever odc-geo prefers.
        return found.rename({found.dims[0]: "channel"}).rename(name)

    def cells(self, shape: tuple[int, int]) -> GeoBox:
        """The grid of a tensor's cells in the scene's CRS, without those that are padding.

        Parameters
        ----------
        shape
            Rows and columns of the whole tensor.
        """
        rows, cols = shape
        height, width = self.geobox.shape
        content_h, content_w = self.content_px
        # Chip px that one cell covers, along each axis: content and chip have the same edges.
        step_y = self.input_px / rows * height / content_h
        step_x = self.input_px / cols * width / content_w
        kept = (
            max(1, min(rows, int(height / step_y + 0.5))),
            max(1, min(cols, int(width / step_x + 0.5))),
        )
        return GeoBox(kept, self.geobox.affine * Affine.scale(step_x, step_y), self.geobox.crs)


def _as_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    array: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    view = array.view()
    view.flags.writeable = False  # it is the cache's
    return np.asarray(view)
