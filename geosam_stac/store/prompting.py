"""What an object is prompted with, on the scene's pixel grid: from points, boxes, masks and files.

Coordinates of a user's CRS in, px of the scene's grid out, (x, y) from its top left corner.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import shapely
from odc.geo.crs import CRS
from odc.geo.geom import Geometry

from geosam_stac.errors import UsageError
from geosam_stac.sources.extent import meet
from geosam_stac.store.places import LONLAT, box_in, find_crs, points_in

if TYPE_CHECKING:
    import geopandas as gpd

    from geosam_stac.store.scene import Scene

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class ObjectPrompt:
    """One object's prompt.

    `points` (x, y) and `box` (left, top, right, bottom) in px of the scene's grid; `labels` 1 on
    the object, 0 off it. `mask`: a shapely geometry in the scene's CRS. `said`: in the user's
    words, for messages. `id`: the user's name for it, or its number.
    """

    id: Hashable
    said: str
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box: Box | None = None
    mask: Any = None
    mask_box: Box | None = None

    @property
    def bounds(self) -> Box:
        """Left, top, right, bottom of all of it in px of the scene's grid."""
        corners = [*self.points]
        for box in (self.box, self.mask_box):
            if box is not None:
                corners += [box[:2], box[2:]]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def centre(self) -> tuple[float, float]:
        """What Geo-SAM takes for the centre: the points' mean; with a box or mask, the bounds'."""
        if self.box is None and self.mask_box is None:
            x, y = np.mean(self.points, axis=0)
            return float(x), float(y)
        left, top, right, bottom = self.bounds
        return (left + right) / 2, (top + bottom) / 2

    @property
    def anchor(self) -> tuple[float, float]:
        """A place on the object: the first point on it, else the centre of box or mask."""
        on = [point for point, label in zip(self.points, self.labels, strict=True) if label == 1]
        if on:
            return on[0]
        left, top, right, bottom = self.box or self.mask_box or self.bounds
        return (left + right) / 2, (top + bottom) / 2


def from_arguments(
    scene: Scene,
    *,
    points: Sequence[tuple[float, float]] = (),
    labels: Sequence[int] | None = None,
    boxes: Sequence[Box] = (),
    mask: Any = None,
    crs: str | None = None,
) -> list[ObjectPrompt]:
    """Points, boxes and a mask as prompts: one object, or one for each of several boxes.

    Raises
    ------
    UsageError
        There is none, they contradict each other, or one lies outside the scene.
    """
    labels = [1] * len(points) if labels is None else list(labels)
    if len(labels) != len(points) or not set(labels) <= {0, 1}:
        raise UsageError(
            "every point needs a label, 1 (on the object) or 0 (off it)",
            expected=f"{len(points)} labels",
            got=str(list(labels)),
        )
    if len(boxes) > 1 and (len(points) or mask is not None):
        raise UsageError(
            "several boxes are several objects: points or a mask cannot belong to all of them",
            hint="Give one box, or a file of prompts",
        )
    if not len(points) and not len(boxes) and mask is None:
        raise UsageError("a prompt is missing", expected="a point, a box, a mask or a file of them")
    crs = crs or LONLAT
    said = [f"{x:.10g},{y:.10g}" for x, y in points]
    placed = [
        _pixel(scene, point, text)
        for point, text in zip(points_in(list(points), crs, scene.geobox), said, strict=True)
    ]
    shape, mask_box, words = None, None, "; ".join(said)
    if mask is not None:
        shape, mask_box = _mask(scene, mask, crs)
        words = "; ".join([*said, "a mask"])
    if not boxes:
        return [
            ObjectPrompt(
                id=1,
                said=words,
                points=tuple(placed),
                labels=tuple(labels),
                mask=shape,
                mask_box=mask_box,
            )
        ]
    return [
        ObjectPrompt(
            id=number,
            said=",".join(f"{value:.10g}" for value in box),
            points=tuple(placed),
            labels=tuple(labels),
            box=_box(scene, box, crs),
            mask=shape,
            mask_box=mask_box,
        )
        for number, box in enumerate(boxes, start=1)
    ]


def _pixel(scene: Scene, point: Any, said: str) -> tuple[float, float]:
    if point.is_empty or not scene.geobox.extent.geom.covers(point):
        raise scene.not_covered(point, said)
    x, y = ~scene.geobox.affine * (point.x, point.y)
    return float(x), float(y)


def _box(scene: Scene, box: Box, crs: str) -> Box:
    area = box_in(box, crs, scene.geobox)
    if area.is_empty:
        raise scene.not_covered(area, ",".join(f"{value:.10g}" for value in box))
    return _bounds_px(scene, area)


def _bounds_px(scene: Scene, area: Any) -> Box:
    back = ~scene.geobox.affine
    corners = shapely.get_coordinates(area)
    xy = np.array([back * (x, y) for x, y in corners])
    (left, top), (right, bottom) = xy.min(axis=0), xy.max(axis=0)
    return float(left), float(top), float(right), float(bottom)


# Masks


def _mask(scene: Scene, mask: Any, crs: str) -> tuple[Any, Box]:
    """A mask as a geometry in the scene's CRS, and its bounds in px."""
    if isinstance(mask, str | Path):
        area, own = _read_mask(Path(mask))
    elif hasattr(mask, "to_crs") and mask.crs is not None:  # geopandas
        area, own = mask.union_all(), CRS(mask.crs)
    else:
        area, own = shapely.geometry.shape(mask), find_crs(crs, scene.crs)
    area = shapely.make_valid(area)
    parts = [part for part in shapely.get_parts(area) if part.area > 0]
    if not parts:
        raise UsageError("the mask is empty", expected="polygons, or a raster with values not 0")
    found = meet(Geometry(shapely.union_all(parts), own), scene.geobox).geom
    if found.is_empty:
        raise scene.not_covered(found, "the mask")
    return found, _bounds_px(scene, found)


def _read_mask(path: Path) -> tuple[Any, CRS]:
    """A raster's pixels that are neither 0 nor nodata, or a vector layer's polygons."""
    import rasterio
    from rasterio.errors import RasterioError
    from rasterio.features import shapes

    if not path.is_file():
        raise UsageError("--mask: no such file", href=str(path))
    try:
        with rasterio.open(path) as source:
            inside = (source.read(1) != 0) & (source.read_masks(1) != 0)
            if source.crs is None:
                raise UsageError("--mask has no CRS", href=str(path))
            polygons = [
                shapely.geometry.shape(geometry)
                for geometry, _ in shapes(
                    inside.astype(np.uint8), mask=inside, transform=source.transform
                )
            ]
            return shapely.union_all(polygons), CRS(source.crs.to_wkt())
    except RasterioError:
        frame = read_layer(path, "--mask")
        return frame.union_all(), CRS(frame.crs)


def read_layer(path: Path, flag: str) -> gpd.GeoDataFrame:
    """A vector layer with a CRS; UsageError where it is none."""
    import geopandas

    if not path.is_file():
        raise UsageError(f"{flag}: no such file", href=str(path))
    try:
        if path.suffix.lower() in (".parquet", ".geoparquet"):
            frame = geopandas.read_parquet(path)
        else:
            frame = geopandas.read_file(path)
    except Exception as error:  # pyogrio raises errors of its own, GDAL's and ValueError
        raise UsageError(f"{flag} cannot be read: {error}", href=str(path)) from error
    if not isinstance(frame, geopandas.GeoDataFrame) or frame.geometry.isna().all():
        raise UsageError(f"{flag} holds no geometry", href=str(path))
    if frame.crs is None:
        raise UsageError(f"{flag} has no CRS", href=str(path), hint="Add it, as with a .prj")
    return frame[frame.geometry.notna()]


# Files of prompts


def from_layer(
    scene: Scene, layer: gpd.GeoDataFrame | str | Path
) -> tuple[list[ObjectPrompt], dict[Hashable, UsageError]]:
    """The objects of a vector layer.

    Parameters
    ----------
    scene
        The scene that they lie in.
    layer
        Points are clicks, anything else means its bounds, as a box. Columns, none of which must be
        there: `group` (rows of one value are one object), `label` (1 or 0, of points), `id` (of
        its own for each object; else its group's value, or its row's number, from 1).

    Returns
    -------
    prompts
        One an object, in the layer's order.
    failed
        Id -> why it cannot be one: it lies outside the scene, or has two boxes.

    Raises
    ------
    UsageError
        It is no such layer, or two objects have the same id.
    """
    frame = read_layer(Path(layer), "--prompts") if isinstance(layer, str | Path) else layer
    frame = frame.rename_geometry("geometry") if frame.geometry.name != "geometry" else frame
    crs = LONLAT if frame.crs is None else str(CRS(frame.crs))
    prompts: list[ObjectPrompt] = []
    failed: dict[Hashable, UsageError] = {}
    for name, rows in _groups(frame):
        try:
            prompts.append(_of_rows(scene, name, rows, crs))
        except UsageError as error:
            failed[name] = error
    return prompts, failed


def count_objects(layer: gpd.GeoDataFrame) -> int:
    """How many objects a vector layer prompts; UsageError where two have the same id."""
    return len(_groups(layer))


def _groups(frame: gpd.GeoDataFrame) -> list[tuple[Hashable, list[Mapping[str, Any]]]]:
    groups: dict[Hashable, list[Mapping[str, Any]]] = {}
    names: dict[Hashable, Hashable] = {}
    # Files keep ids of two kinds as text: 7 and "7" would be one there.
    rows_of: dict[str, int] = {}
    for number, record in enumerate(frame.to_dict("records"), start=1):
        group = _plain(record.get("group"))
        key = ("row", number) if group is None else ("group", group)
        groups.setdefault(key, []).append(record)
        if key in names:
            continue
        given = _plain(record.get("id"))
        name = next(one for one in (given, group, number) if one is not None)
        names[key] = name
        if (other := rows_of.setdefault(str(name), number)) != number:
            raise UsageError(
                "two objects of --prompts have the same id",
                got=f"{name} in rows {other} and {number}",
                hint="Give each an id of its own (a row without one has its group, or its number), "
                "or the rows of one object the same value in a column group",
            )
    return [(names[key], rows) for key, rows in groups.items()]


def _plain(value: Any) -> Any:
    """A cell as a Python value; None for what tables have in empty cells."""
    if pd.isna(value):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)  # pandas has integers beside empty cells as floats
    return value.item() if hasattr(value, "item") else value


def _label(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise UsageError("a label of --prompts is neither 1 nor 0", got=repr(value)) from error


def _of_rows(scene: Scene, name: Hashable, rows: list[Mapping[str, Any]], crs: str) -> ObjectPrompt:
    points: list[tuple[float, float]] = []
    labels: list[int] = []
    boxes: list[Box] = []
    for record in rows:
        geometry, label = record["geometry"], _plain(record.get("label"))
        for part in shapely.get_parts(geometry) if "Point" in geometry.geom_type else ():
            points.append((part.x, part.y))
            labels.append(1 if label is None else _label(label))
        if "Point" not in geometry.geom_type:
            boxes.append(geometry.bounds)
    if len(boxes) > 1:
        raise UsageError("an object of --prompts has two boxes", got=f"group {name}")
    (found,) = from_arguments(scene, points=points, labels=labels, boxes=boxes, crs=crs)
    return ObjectPrompt(
        id=name, said=found.said, points=found.points, labels=found.labels, box=found.box
    )
