"""A scene on a map that a notebook shows: footprints of the chips upon the embeddings in colours.

ipyleaflet draws it, and is an extra; its widget brings its own JavaScript and the picture is a data
URI, so that nothing is fetched.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pyproj
import rasterio
import shapely
from PIL import Image
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds

from geosam_stac import cards
from geosam_stac.errors import ConfigurationError, DataError, UsageError
from geosam_stac.store import FeatureItem

if TYPE_CHECKING:
    from types import ModuleType

OVERLAY_PX, MOST_PX = 1024, 4096
MOST_CHIPS = 5_000
"""Beyond it browsers crawl: the outline of all chips is drawn instead."""
CHIP_STYLE = {"color": "#ffd60a", "weight": 1, "fillOpacity": 0.0}
HOVER_STYLE = {"color": "#ffffff", "weight": 3}
POLYGON_STYLE = {"color": "#00e5ff", "weight": 2, "fillOpacity": 0.25}
# https://epsg.io/3857: radius of the sphere, and where the square ends.
_RADIUS_M, _END_DEGREES = 6_378_137.0, 85.06
_TILE_M = 2 * math.pi * _RADIUS_M / 256
_SIDES = 32
_MAP_PX = 480
_MOST_ZOOM = 24.0


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """A picture as a data URI, and south, west, north, east of its edges in degrees.

    Straight in Web Mercator, as Leaflet draws it. Across the antimeridian east is beyond 180.
    """

    url: str
    bounds: tuple[float, float, float, float]


def explore(
    features: FeatureItem, colours: bytes, *, polygons: gpd.GeoDataFrame | None, chips: bool
) -> Any:
    """Make the map; see `views.FeatureItem.explore`. `colours`: the picture as a COG."""
    leaflet, widgets = _libraries()
    middle = _middle(features)
    picture = overlay(colours, middle)
    south, west, north, east = picture.bounds
    image = leaflet.ImageOverlay(
        url=picture.url, bounds=((south, west), (north, east)), name="embeddings", opacity=1.0
    )
    view = leaflet.Map(
        layers=(image,),
        center=((south + north) / 2, (west + east) / 2),
        zoom=_zoom(picture.bounds),
        max_zoom=_MOST_ZOOM,
        scroll_wheel_zoom=True,
        attribution_control=False,
    )
    if chips:
        named = widgets.Label(value=f"{len(features.manifest):,} chips")
        layer = leaflet.GeoJSON(
            data=footprints(features, middle),
            style=CHIP_STYLE,
            hover_style=HOVER_STYLE,
            name="chips",
        )
        layer.on_hover(lambda **event: _name(named, event))
        view.add(layer)
        view.add(leaflet.WidgetControl(widget=named, position="bottomleft"))
    if polygons is not None:
        if polygons.crs is None:
            raise UsageError("polygons without a CRS cannot be placed", hint="Call .set_crs first")
        data = _geojson(gpd.GeoDataFrame(geometry=polygons.geometry), middle)
        view.add(leaflet.GeoJSON(data=data, style=POLYGON_STYLE, name="polygons"))
    opacity = widgets.FloatSlider(
        value=1.0, min=0.0, max=1.0, step=0.05, description="opacity", readout=False
    )
    # In the browser: works in a saved notebook too.
    widgets.jslink((opacity, "value"), (image, "opacity"))
    view.add(leaflet.WidgetControl(widget=opacity, position="topright"))
    view.add(leaflet.LayersControl(position="topright"))
    return view


def overlay(colours: bytes, middle: float) -> Overlay:
    """A COG in Web Mercator, centred on a meridian (degrees) so that no scene is cut in two.

    Raises
    ------
    DataError
        It reaches beyond 85 degrees of latitude.
    """
    mercator = pyproj.CRS(f"+proj=webmerc +datum=WGS84 +lon_0={middle!r}").to_wkt()
    try:
        with rasterio.MemoryFile(colours) as memory, memory.open() as source:
            left, bottom, right, top = transform_bounds(source.crs, mercator, *source.bounds)
            longer = min(MOST_PX, max(OVERLAY_PX, *source.shape)) / max(right - left, top - bottom)
            width, height = (max(1, round(d * longer)) for d in (right - left, top - bottom))
            if max(abs(top), abs(bottom)) > _northing(_END_DEGREES):
                raise _beyond()
            with WarpedVRT(
                source,
                crs=mercator,
                transform=rasterio.transform.from_bounds(left, bottom, right, top, width, height),
                width=width,
                height=height,
                resampling=Resampling.bilinear,
                add_alpha=ColorInterp.alpha not in source.colorinterp,
            ) as raster:
                pixels = np.dstack([*raster.read([1, 2, 3]), raster.dataset_mask()])
    except RasterioError as error:
        raise _beyond() from error
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG", optimize=True)
    west, east = (middle + math.degrees(x / _RADIUS_M) for x in (left, right))
    south, north = (_latitude(y) for y in (bottom, top))
    return Overlay(url=cards.data_uri(png.getvalue()), bounds=(south, west, north, east))


def footprints(features: FeatureItem, middle: float) -> dict[str, Any]:
    """The chips' outlines as GeoJSON, each with its id; of very many, the outline of all."""
    frame = features.manifest
    if len(frame) > MOST_CHIPS:
        whole = gpd.GeoDataFrame(
            {"name": [f"{len(frame):,} chips"]},
            geometry=[shapely.union_all(frame.geometry.to_numpy())],
            crs=frame.crs,
        )
        return _geojson(whole, middle)
    named = frame[["chip_id", "geometry"]].rename(columns={"chip_id": "name"})
    return _geojson(named, middle)


def _geojson(frame: gpd.GeoDataFrame, middle: float) -> dict[str, Any]:
    """In longitude and latitude within 180 degrees of a meridian, their sides cut to follow it."""
    pieces = frame.copy()
    bounds = pieces.total_bounds
    longest = max(bounds[2] - bounds[0], bounds[3] - bounds[1]) / _SIDES
    if np.isfinite(longest) and longest > 0:
        pieces["geometry"] = pieces.geometry.segmentize(longest)
    pieces = pieces.to_crs(f"+proj=longlat +datum=WGS84 +lon_wrap={middle!r} +no_defs")
    document: dict[str, Any] = json.loads(pieces.to_json(drop_id=True))
    document.pop("crs", None)
    return document


def _middle(features: FeatureItem) -> float:
    """The longitude of the scene's centre."""
    grid = features.geobox
    x, y = grid.affine.c, grid.affine.f
    height, width = grid.shape
    x += grid.affine.a * width / 2 + grid.affine.b * height / 2
    y += grid.affine.d * width / 2 + grid.affine.e * height / 2
    point = gpd.GeoSeries([shapely.Point(x, y)], crs=features.crs.proj).to_crs("OGC:CRS84")
    longitude = float(point.x.iloc[0])
    if not math.isfinite(longitude):
        raise _beyond()
    return longitude


def _name(label: Any, event: dict[str, Any]) -> None:
    label.value = str(event.get("feature", {}).get("properties", {}).get("name", ""))


def _zoom(bounds: tuple[float, float, float, float]) -> float:
    """The zoom at which the bounds fill the map."""
    south, west, north, east = bounds
    extent = max(_northing(north) - _northing(south), math.radians(east - west) * _RADIUS_M)
    return float(min(_MOST_ZOOM, max(0, math.floor(math.log2(_TILE_M * _MAP_PX / extent)))))


def _northing(latitude: float) -> float:
    return _RADIUS_M * math.asinh(math.tan(math.radians(latitude)))


def _latitude(northing: float) -> float:
    return math.degrees(math.atan(math.sinh(northing / _RADIUS_M)))


def _beyond() -> DataError:
    return DataError(
        "the scene lies where a map in Web Mercator ends",
        expected="within 85 degrees of latitude",
        hint="Use .plot(), which draws in the scene's own CRS",
    )


def _libraries() -> tuple[ModuleType, ModuleType]:
    try:
        import ipyleaflet
        import ipywidgets
    except ImportError as error:
        raise ConfigurationError(
            "a map needs ipyleaflet, which is not installed",
            got=str(error),
            hint="pip install 'geosam-stac[notebook]', and restart the notebook; or use .plot()",
        ) from error
    return ipyleaflet, ipywidgets
