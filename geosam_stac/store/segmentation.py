"""What prompts came to: masks, scores, polygons; and the files that they are written to."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj import Geod, Transformer

from geosam_stac import cards
from geosam_stac.errors import DataError, UsageError
from geosam_stac.grid import crop
from geosam_stac.item import COORDINATE_DIGITS
from geosam_stac.storage import Store
from geosam_stac.store.degrees import within_180, wound
from geosam_stac.store.follow import ObjectMask
from geosam_stac.store.pixels import polygons
from geosam_stac.store.places import LONLAT, NATIVE, find_crs
from geosam_stac.store.seam import projected
from geosam_stac.windows import union, within

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geosam_stac.errors import GeosamStacError

FORMATS = (".geojson", ".gpkg", ".parquet", ".tif")
# Before a polygon is projected, or its area taken, its sides are cut to so many px: the side of a
# 10 m pixel's polygon then stays within a millimetre of where it was.
_SIDE_PX = 64
_WGS84 = Geod(ellps="WGS84")


@dataclass(frozen=True, kw_only=True, repr=False)
class Segmentation:
    """Masks of one or more objects of a scene.

    `objects`: each with its mask on its own part of the scene's grid. `scene_geobox`: that grid.
    `failed`: the user's id of an object -> why it has none. `item_id`, `model`: of the features.
    """

    item_id: str
    model: str
    scene_geobox: GeoBox
    objects: tuple[ObjectMask, ...]
    failed: Mapping[Hashable, GeosamStacError] = field(default_factory=dict)

    def __repr__(self) -> str:
        return cards.plain(self.item_id, self._facts())

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return cards.card(self.item_id, self._facts())

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {
            "model": self.model,
            "CRS": self._crs,
            "objects": f"{len({one.id for one in self.objects}):,}",
            "masks": f"{len(self.objects):,}",
        }
        if len(self.objects):
            facts["scores"] = f"{self.scores.min():.3f} to {self.scores.max():.3f}"
        if cut := sum(not one.complete for one in self.objects):
            facts["incomplete"] = f"{cut:,}"
        if self.failed:
            facts["failed"] = f"{len(self.failed):,}"
        return facts

    @property
    def scores(self) -> NDArray[np.float32]:
        """(M,): for each mask the IoU that the model expects, 0 to 1."""
        return np.array([one.score for one in self.objects], dtype=np.float32)

    @property
    def geobox(self) -> GeoBox:
        """The grid of `masks`: the part of the scene's that the prompted chips cover."""
        return crop(self.scene_geobox, union([one.seen for one in self.objects]))

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(M, H, W), True on the object, on `geobox`. Of far apart objects this may be large."""
        whole = union([one.seen for one in self.objects])
        masks = np.zeros((len(self.objects), whole.height, whole.width), dtype=bool)
        for mask, one in zip(masks, self.objects, strict=True):
            mask[within(one.window, whole)] = one.mask
        return masks

    @property
    def polygons(self) -> gpd.GeoDataFrame:
        """`to_geodataframe()`: in the scene's CRS."""
        return self.to_geodataframe()

    def to_geodataframe(self, crs: str | None = None) -> gpd.GeoDataFrame:
        """One row a mask; one that is empty has none.

        Parameters
        ----------
        crs
            Of the geometries; default, and "native": the scene's.

        Returns
        -------
        geopandas.GeoDataFrame
            `id` (text, where they are of several kinds), `score`, `area_m2` (on the WGS84
            ellipsoid, by geodesics between the outline's points, holes taken out), `chips` (their
            ids, between commas), `complete` (False where the object goes on beyond what could be
            followed), `geometry` (Polygon or MultiPolygon along the pixels' edges, holes kept).

        Raises
        ------
        UsageError
            PROJ knows no such CRS, or it has no place for the pole that a mask holds.
        """
        records = []
        # GeoParquet has one type a column; the other formats would make them text, too.
        as_text = len({type(one.id) for one in self.objects}) > 1
        for one in self.objects:
            shape = self._shape(one)
            if not shape.is_empty:
                records.append(
                    {
                        "id": str(one.id) if as_text else one.id,
                        "score": round(one.score, 6),
                        "area_m2": round(area_m2(shape, self._crs, self._side), 3),
                        "chips": ",".join(one.chips),
                        "complete": one.complete,
                        "geometry": shape,
                    }
                )
        columns = ["id", "score", "area_m2", "chips", "complete", "geometry"]
        frame = gpd.GeoDataFrame(
            pd.DataFrame(records, columns=columns), geometry="geometry", crs=self._crs.proj
        )
        target = self._crs if crs is None else find_crs(crs, self._crs, flag="--out-crs")
        if frame.empty:
            return frame.set_crs(target.proj, allow_override=True)
        if crs is None or (target == self._crs and not target.geographic):
            return frame
        frame["geometry"] = frame.geometry.segmentize(self._side)
        if not target.geographic:
            return frame.set_geometry(projected(frame.geometry, target))
        frame = frame.to_crs(target.proj)
        frame["geometry"] = [within_180(shape) for shape in frame.geometry]
        return frame

    def to_geojson(self) -> str:
        """A FeatureCollection in longitude and latitude, as RFC 7946 wants it."""
        frame = self.to_geodataframe("EPSG:4326")
        frame["geometry"] = [
            shapely.transform(wound(shape), lambda xy: np.round(xy, COORDINATE_DIGITS))
            for shape in frame.geometry
        ]
        text: str = frame.to_json(drop_id=True, to_wgs84=True)
        return text

    def write(self, href: str, *, crs: str | None = None) -> str:
        """Write it as its name's ending says; returns the absolute path or URL.

        Parameters
        ----------
        href
            .geojson (always longitude and latitude), .gpkg or .parquet: the polygons. .tif: the
            masks, on the whole of the scene's grid; 1 on the object, a band each, and of more than
            one object their numbers, from 1, in one band, where later ones lie upon earlier ones.
        crs
            Of a GeoPackage or GeoParquet; default: the scene's.

        Raises
        ------
        UsageError
            Another ending, a CRS where the format has one of its own, or in a .tif several masks
            of several objects.
        StorageError
            It cannot be written.
        """
        suffix = check_format(href, crs, several_of_each=self._several_of_each)
        folder, _, name = href.replace("\\", "/").rpartition("/")
        store = Store(folder or ("/" if href.startswith("/") else "."))
        with tempfile.TemporaryDirectory(prefix="geosam-stac-") as temporary:
            path = Path(temporary) / f"masks{suffix}"
            if suffix == ".geojson":
                path.write_text(self.to_geojson(), encoding="utf-8")
            elif suffix == ".gpkg":
                self.to_geodataframe(crs).to_file(path, driver="GPKG", layer="masks")
            elif suffix == ".parquet":
                self.to_geodataframe(crs).to_parquet(path, index=False, compression="zstd")
            else:
                self._write_tif(path)
            store.put(name, path.read_bytes())
        return store.href(name)

    @property
    def _several_of_each(self) -> bool:
        """Whether there are several objects, and more masks than objects."""
        return 1 < len({one.id for one in self.objects}) < len(self.objects)

    @property
    def _crs(self) -> CRS:
        crs = self.scene_geobox.crs
        assert crs is not None  # `ChipIndex` sees to it
        return crs

    @property
    def _side(self) -> float:
        affine = self.scene_geobox.affine
        return float(_SIDE_PX * max(abs(affine.a) + abs(affine.d), abs(affine.b) + abs(affine.e)))

    def _shape(self, one: ObjectMask) -> Any:
        """A mask's outline in the scene's CRS."""
        affine = crop(self.scene_geobox, one.window).affine

        def placed(xy: NDArray[np.float64]) -> NDArray[np.float64]:
            x, y = xy[:, 0], xy[:, 1]
            return np.column_stack(
                [affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f]
            )

        parts = polygons(one.mask)
        shape = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
        return shapely.transform(shape, placed)

    def _write_tif(self, path: Path) -> None:
        import rasterio
        from rasterio.windows import Window as RasterWindow

        height, width = self.scene_geobox.shape
        numbered = len({one.id for one in self.objects}) > 1
        with rasterio.open(
            path,
            "w+",
            driver="GTiff",
            height=height,
            width=width,
            count=1 if numbered else max(1, len(self.objects)),
            dtype="uint32" if numbered else "uint8",
            crs=self._crs.proj.to_wkt(),
            transform=self.scene_geobox.affine,
            tiled=True,
            compress="deflate",
            sparse_ok=True,
        ) as raster:
            for number, one in enumerate(self.objects, start=1):
                band = 1 if numbered else number
                place = RasterWindow(
                    one.window.col_off, one.window.row_off, one.window.width, one.window.height
                )
                values = raster.read(band, window=place)
                values[one.mask] = number if numbered else 1
                raster.write(values, band, window=place)
                if not numbered:
                    raster.update_tags(band, score=f"{one.score:.6f}", chips=",".join(one.chips))
            raster.update_tags(item=self.item_id, model=self.model)


def check_format(href: str, crs: str | None, *, several_of_each: bool = False) -> str:
    """The ending of a file that masks can be written to; of each of many objects perhaps several.

    Raises UsageError where it is another one, a CRS is given where the format has its own, or the
    format cannot hold `several_of_each`.
    """
    suffix = next((end for end in FORMATS if href.lower().endswith(end)), None)
    if href.lower().endswith(".tiff"):
        suffix = ".tif"
    if suffix is None:
        raise UsageError(
            "--out names no format that is known", expected=" or ".join(FORMATS), got=href
        )
    if crs is not None and suffix == ".tif":
        raise UsageError(
            "a GeoTIFF of masks is on the scene's own grid", hint="Leave --out-crs out"
        )
    if several_of_each and suffix == ".tif":
        raise UsageError(
            "several masks of several objects cannot stand in one raster",
            hint="Leave --multimask out, or write polygons",
        )
    lonlat = CRS(LONLAT)
    named: CRS | None = lonlat
    if crs is not None:
        # Which one is native is not known here: it may be another one than GeoJSON's.
        named = None if crs.lower() == NATIVE else find_crs(crs, lonlat, flag="--out-crs")
    if suffix == ".geojson" and named != lonlat:
        raise UsageError(
            "GeoJSON is in longitude and latitude, always (RFC 7946)",
            hint="Write a .gpkg or .parquet for another CRS",
        )
    return suffix


def area_m2(shape: Any, crs: CRS, side: float) -> float:
    """Area in square metres on the WGS84 ellipsoid, by geodesics, of sides no longer than `side`.

    A CRS's own square metres may be far from those on the ground: at 47 N Web Mercator's are
    twice as large.
    """
    transformer = Transformer.from_crs(crs.proj, "OGC:CRS84", always_xy=True)

    def to_lonlat(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack(transformer.transform(xy[:, 0], xy[:, 1]))

    # Wound before it is projected: in degrees a ring across the antimeridian may look reversed, and
    # a hole would be added.
    outline = shapely.transform(shapely.segmentize(wound(shape), side), to_lonlat)
    if not np.isfinite(shapely.get_coordinates(outline)).all():
        raise DataError("a mask has no place on the Earth")
    area, _ = _WGS84.geometry_area_perimeter(outline)
    return abs(float(area))
