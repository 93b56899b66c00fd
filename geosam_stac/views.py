"""Features that can be looked at: what `open_features` gives. `figures` and `webmap` draw."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from geosam_stac import figures, store, webmap

if TYPE_CHECKING:
    import geopandas as gpd
    from PIL import Image


class FeatureItem(store.FeatureItem):
    """A scene's features (see `store.FeatureItem`), which can be looked at."""

    @functools.cached_property
    def _colours(self) -> bytes:
        """The embeddings as a COG of colours: drawn once."""
        return figures.pca_cog(self)

    def plot(
        self,
        polygons: gpd.GeoDataFrame | None = None,
        *,
        points: Sequence[tuple[float, float]] = (),
        labels: Sequence[int] | None = None,
        background: str | os.PathLike[str] = figures.PCA,
        chips: bool = True,
        size_px: int = figures.SIZE_PX,
    ) -> Image.Image:
        """A picture of the scene on its own grid.

        Parameters
        ----------
        polygons
            Drawn upon it, in any CRS: as `Segmentation.polygons`.
        points, labels
            Clicks, as `segment` takes them: green on the object, red off it.
        background
            "pca": the embeddings in colours; all features are read for it once, unless the Item has
            an `overview`. Or a raster, by a name that rasterio opens: its first three bands; what
            is not uint8 is stretched between 2 and 98 %.
        chips
            Whether the chips are outlined: in yellow, in red those without a feature.
        size_px
            The longer side.

        Returns
        -------
        PIL.Image.Image
            RGBA, transparent where there is nothing. A notebook shows it; `.save(path)` writes it.

        Raises
        ------
        DataError
            There is no chip with a feature, or the raster cannot be read.
        UsageError
            A size out of range, labels that do not fit, polygons without a CRS.
        """
        return figures.plot(
            self,
            self._colours if background == figures.PCA else background,
            polygons=polygons,
            points=points,
            labels=labels,
            chips=chips,
            size_px=size_px,
        )

    def explore(self, polygons: gpd.GeoDataFrame | None = None, *, chips: bool = True) -> Any:
        """A map to zoom and pan: the embeddings in colours, and the chips. Works offline.

        Needs `geosam-stac[notebook]`. Has no basemap: `map.add(ipyleaflet.basemap_to_tiles(...))`.

        Parameters
        ----------
        polygons
            Drawn upon it, in any CRS.
        chips
            Whether the chips are outlined; the one under the pointer is named.

        Returns
        -------
        ipyleaflet.Map

        Raises
        ------
        ConfigurationError
            ipyleaflet is not installed.
        DataError
            There is no chip with a feature, or the scene lies where the map ends, near a pole.
        UsageError
            Polygons without a CRS.
        """
        return webmap.explore(self, self._colours, polygons=polygons, chips=chips)
