"""One band's way onto the scene's grid: how its file is opened, and which level of it is read."""

from __future__ import annotations

import math

import numpy as np
from odc.geo.overlap import compute_reproject_roi

from geosam_stac.errors import DataError
from geosam_stac.types import Access, Band, Scene
from geosam_stac.warp import kernel_shrink, overview_grid


class BandSource:
    """A band as it is read: `grid` is that of the `level` of its file that suffices.

    Raises DataError where the band's header is not known.
    """

    def __init__(self, scene: Scene, band: Band, resampling: str, access: Access) -> None:
        if band.geobox is None or band.dtype is None:
            raise DataError("the band's header is not known", item=scene.id, href=band.href)
        self.band = band
        self.dtype = np.dtype(band.dtype)
        self.resampling = resampling
        self.access = access
        whole = compute_reproject_roi(band.geobox, scene.geobox)
        # The scale is taken of the whole scene: taken of each window, windows would disagree.
        self.level = 2 ** int(math.log2(max(1, whole.read_shrink)))
        self.grid = overview_grid(band.geobox, self.level)
        scale = whole.scale2
        self.shrink = (kernel_shrink(scale.x / self.level), kernel_shrink(scale.y / self.level))
