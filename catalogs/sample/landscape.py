"""The pixels of the sample scene: a generated rural landscape seen from above.

Owns the picture only; the file and its STAC documents are `make_sample.py`'s. Imports nothing of
geosam_stac.

The picture is lossless and below 2 MB, so texture is made of few levels: a pixel is a class
colour plus a small whole number of steps, and neighbours mostly share the number. White noise of
one bit would by itself cost 0.7 MB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from shapes import (
    SIZE_PX,
    Curve,
    Dice,
    Floats,
    Ints,
    Mask,
    Plot,
    Point,
    Window,
    edge_distances,
    meander,
    sixty_fourth,
    subdivide,
    trace,
    unit,
    value_noise,
    window_of,
)

SEED = 20240615

Colour = tuple[int, int, int, int]  # red, green, blue, near infrared, 0 to 255

# The sun stands in the south-east, as on a summer morning: shadows fall up and to the left.
SHADOW_DX, SHADOW_DY = -0.609375, -0.796875


@dataclass(frozen=True, kw_only=True)
class Crop:
    """How one kind of field looks.

    `step` is what one level of texture adds to each band. Rows are `row_px` apart, wheel tracks
    of the sprayer `tram_px` apart; 0 is none.
    """

    colour: Colour
    step: Colour
    row_px: int = 0
    tram_px: int = 0
    swath_px: int = 0
    trees_px: int = 0
    mottle: int = 2


CROPS = (
    Crop(colour=(84, 118, 66, 186), step=(4, 4, 3, -4), tram_px=36, mottle=2),  # young wheat
    Crop(colour=(198, 176, 118, 150), step=(5, 5, 4, 4), tram_px=36, mottle=2),  # ripe barley
    Crop(colour=(60, 98, 54, 204), step=(6, 6, 4, -6), row_px=6, mottle=1),  # maize
    Crop(colour=(146, 114, 86, 112), step=(6, 5, 4, 5), row_px=9, mottle=2),  # potato ridges
    Crop(colour=(112, 136, 80, 178), step=(5, 5, 4, 5), swath_px=18, mottle=1),  # mown hay
    Crop(colour=(196, 188, 66, 196), step=(5, 4, 3, 4), tram_px=48, mottle=2),  # rape in flower
    Crop(colour=(104, 82, 66, 84), step=(5, 4, 3, 4), row_px=14, mottle=2),  # ploughed
    Crop(colour=(118, 142, 86, 176), step=(4, 4, 3, 5), mottle=3),  # pasture
    Crop(colour=(126, 140, 88, 168), step=(4, 4, 3, 4), trees_px=15, mottle=1),  # orchard
    Crop(colour=(176, 158, 116, 140), step=(5, 5, 4, 4), row_px=12, swath_px=24, mottle=1),  # straw
    Crop(colour=(96, 134, 78, 206), step=(4, 5, 3, 5), row_px=8, mottle=2),  # sugar beet
)

VERGE: Colour = (106, 126, 74, 166)
GRAVEL: Colour = (178, 166, 146, 150)
ASPHALT: Colour = (104, 104, 108, 92)
PAINT: Colour = (206, 206, 200, 180)
TRACK: Colour = (168, 150, 118, 144)
WATER: Colour = (44, 70, 76, 20)
SAND: Colour = (204, 192, 160, 172)
LAWN: Colour = (104, 138, 76, 184)
FOREST_FLOOR: Colour = (52, 70, 44, 120)
ROOFS: tuple[Colour, ...] = (
    (164, 92, 72, 124),
    (148, 82, 66, 116),
    (172, 108, 84, 130),
    (118, 108, 104, 104),
    (134, 122, 114, 114),
)
BARN_ROOFS: tuple[Colour, ...] = ((196, 200, 204, 168), (150, 98, 82, 118), (172, 178, 180, 150))
CANOPIES: tuple[Colour, ...] = (
    (58, 86, 48, 176),
    (66, 94, 52, 188),
    (50, 78, 46, 162),
    (78, 102, 54, 192),
)
CARS: tuple[Colour, ...] = ((228, 228, 230, 190), (172, 44, 40, 96), (40, 52, 92, 70))


@dataclass(frozen=True, kw_only=True)
class Box:
    """A building or a vehicle: a rectangle with a direction, a height and a roof."""

    centre: Point
    length_px: float
    width_px: float
    angle_deg: float
    height_px: int
    colour: Colour
    gable: bool = True


@dataclass(frozen=True, kw_only=True)
class Disc:
    """A tree, or a silo when it is flat."""

    centre: Point
    radius_px: float
    height_px: int
    colour: Colour
    flat: bool = False


@dataclass(kw_only=True)
class Scene:
    """What is being painted: pixels int16 (y, x, band), and what stands on the ground."""

    pixels: npt.NDArray[np.int16]
    mottle: Ints
    grain: Ints
    water: Mask
    paved: Mask
    boxes: list[Box] = field(default_factory=list)
    discs: list[Disc] = field(default_factory=list)

    def fill(self, window: Window, mask: Mask, colour: Colour) -> None:
        """Paint one flat colour where the mask is True."""
        self.pixels[window][mask] = colour

    def fell(self, centre: Point, radius_px: float) -> None:
        """Remove the trees within a circle."""
        self.discs = [
            disc
            for disc in self.discs
            if (disc.centre[0] - centre[0]) ** 2 + (disc.centre[1] - centre[1]) ** 2 > radius_px**2
        ]

    def clear_of(self, point: Point, margin_px: int, *, roads: bool = True) -> bool:
        """Whether no water (and no road) lies within a square around the point, in the picture."""
        x, y = int(point[0]), int(point[1])
        if not (0 <= x < SIZE_PX and 0 <= y < SIZE_PX):
            return False
        around = np.s_[
            max(0, y - margin_px) : y + margin_px + 1, max(0, x - margin_px) : x + margin_px + 1
        ]
        return not (self.water[around].any() or (roads and self.paved[around].any()))


# The fields that hold one of these points are built over.
VILLAGE: tuple[Point, ...] = ((1330, 900), (1400, 1060))

# Half widths in px of what runs along an edge: the surface, and the surface with its verge.
SURFACE_PX = {"road": 4.0, "street": 3.5, "track": 2.0, "hedge": 0.0, "strip": 0.0, "lot": 0.0}
MARGIN_PX = {"road": 8.0, "street": 4.5, "track": 4.0, "hedge": 3.0, "strip": 1.5, "lot": 0.75}
SURFACES = {"road": GRAVEL, "street": ASPHALT, "track": TRACK}


def paint_texture(scene: Scene, window: Window, mask: Mask, crop: Crop, level: Ints) -> None:
    """Paint a crop's colour plus `level` steps (int32 (y, x)) where the mask is True."""
    chosen = level[mask][:, None]
    scene.pixels[window][mask] = np.array(crop.colour) + chosen * np.array(crop.step)


def paint_edges(scene: Scene, plot: Plot, window: Window, distances: Floats, inside: Mask) -> None:
    """Paint the verges, roads and tracks along a plot's edges, and plant its hedges."""
    for edge, distance in zip(plot.edges, distances, strict=True):
        scene.fill(window, inside & (distance < MARGIN_PX[edge]), VERGE)
    for edge, distance in zip(plot.edges, distances, strict=True):
        if edge in SURFACES:
            surface = inside & (distance < SURFACE_PX[edge])
            scene.fill(window, surface, SURFACES[edge])
            if edge == "track":  # grass grows between the wheels
                scene.fill(window, inside & (distance < 0.75), VERGE)
            else:
                scene.paved[window] |= surface


def row_levels(crop: Crop, distance: Floats) -> Ints:
    """Levels of sowing rows, wheel tracks and swaths at a distance from where they start."""
    whole = distance.astype(np.int32)
    level = np.zeros_like(whole)
    if crop.row_px:
        level -= whole % crop.row_px < crop.row_px // 2
    if crop.swath_px:
        level += 2 * (whole // crop.swath_px % 2)
    if crop.tram_px:
        track = whole % crop.tram_px
        level -= 4 * ((track == 0) | (track == 3))
    return level


def paint_field(scene: Scene, plot: Plot, crop: Crop) -> None:
    """Paint one field: rows along its longest edge, headlands around, verges and roads."""
    window, rows, cols = window_of([x for x, _ in plot.corners], [y for _, y in plot.corners])
    distances = edge_distances(plot.corners, rows, cols)
    if distances.size == 0:
        return
    inside = distances.min(axis=0) >= 0
    margins = np.array([MARGIN_PX[edge] for edge in plot.edges])
    from_margin = (distances - margins[:, None, None]).min(axis=0)
    pairs = list(zip(plot.corners, plot.corners[1:] + plot.corners[:1], strict=True))
    lengths = [(x1 - x0) ** 2 + (y1 - y0) ** 2 for (x0, y0), (x1, y1) in pairs]
    longest = lengths.index(max(lengths))

    field_rows = row_levels(crop, distances[longest])
    headland = from_margin < 14
    around = row_levels(crop, np.maximum(from_margin, 0))
    level = np.where(headland, around, field_rows) + scene.grain[window]
    level += scene.mottle[window] * (2 * crop.mottle + 1) // 256 - crop.mottle
    paint_texture(scene, window, inside, crop, level)
    paint_edges(scene, plot, window, distances, inside)
    if crop.trees_px:
        plant_orchard(scene, plot, pairs[longest], crop.trees_px)


def plant_orchard(scene: Scene, plot: Plot, edge: tuple[Point, Point], apart_px: int) -> None:
    """Set trees on a grid along an edge."""
    (x0, y0), (x1, y1) = edge
    length = math.sqrt((x1 - x0) ** 2 + (y1 - y0) ** 2)
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    for along in range(apart_px, int(length), apart_px):
        for across in range(apart_px, 700, apart_px):
            centre = (
                sixty_fourth(x0 + along * ux - across * uy),
                sixty_fourth(y0 + along * uy + across * ux),
            )
            inner = [
                (centre[0] + dx, centre[1] + dy)
                for dx, dy in ((12, 0), (-12, 0), (0, 12), (0, -12))
            ]
            if all(plot.contains(point) for point in inner):
                scene.discs.append(
                    Disc(centre=centre, radius_px=4.5, height_px=6, colour=CANOPIES[1])
                )


def plant_hedges(scene: Scene, plot: Plot, dice: Dice) -> None:
    """Set bushes and trees along the edges that are hedges, and single trees along roads."""
    pairs = zip(plot.corners, plot.corners[1:] + plot.corners[:1], strict=True)
    for ((x0, y0), (x1, y1)), edge in zip(pairs, plot.edges, strict=True):
        if edge not in ("hedge", "road"):
            continue
        length = math.sqrt((x1 - x0) ** 2 + (y1 - y0) ** 2)
        inwards = 0.0 if edge == "hedge" else 11.0
        at = dice.between(4, 30)
        while at < length:
            radius = dice.between(3, 5.5) if edge == "hedge" else dice.between(4, 6)
            centre = (
                sixty_fourth(x0 + ((x1 - x0) * at - (y1 - y0) * inwards) / length),
                sixty_fourth(y0 + ((y1 - y0) * at + (x1 - x0) * inwards) / length),
            )
            scene.discs.append(tree(dice, centre, radius))
            gap = dice.between(6, 11) if edge == "hedge" else dice.between(16, 60)
            at += gap + (dice.between(20, 120) if dice.chance(0.08) else 0)


def tree(dice: Dice, centre: Point, radius_px: float) -> Disc:
    """Make a tree of some green."""
    colour = CANOPIES[dice.whole(0, len(CANOPIES))]
    return Disc(centre=centre, radius_px=radius_px, height_px=int(radius_px * 1.7), colour=colour)


def paint_pivot(scene: Scene, centre: Point, radius_px: int) -> None:
    """Paint a field irrigated by a turning arm: a disc of sectors with circular wheel tracks."""
    scene.fell(centre, radius_px + 10)
    window, rows, cols = window_of([centre[0]], [centre[1]], radius_px + 8)
    dx, dy = cols - centre[0], rows - centre[1]
    distance = np.sqrt(dx * dx + dy * dy)
    inside = distance < radius_px
    scene.fill(window, distance < radius_px + 4, VERGE)
    for crop, sector in (
        (CROPS[2], (dy * 0.875 < dx) & (dx + dy * 0.5 > 0)),
        (CROPS[10], (dy * 0.875 >= dx) & (dx + dy * 0.5 > 0)),
        (CROPS[9], dx + dy * 0.5 <= 0),
    ):
        rings = distance.astype(np.int32)
        level = scene.grain[window] + scene.mottle[window] * 3 // 256 - 1
        level -= 3 * (rings % 44 < 2)
        paint_texture(scene, window, inside & sector, crop, level)
    scene.fill(window, inside & (np.abs(dx * 0.25 + dy) < 1.5) & (dx > 0), TRACK)


def paint_river(scene: Scene, river: Curve, dice: Dice) -> None:
    """Paint the river with its meadow strip and the sand bars inside its bends; plant its banks."""
    half_px = 23 + (scene.mottle - 128) / 16
    distance = river.distance
    crossed = scene.paved.copy()
    bank = (distance < half_px + 16 + (scene.grain + 1) * 2) & ~crossed
    level = scene.grain + scene.mottle * 5 // 256 - 2
    whole = np.s_[0:SIZE_PX, 0:SIZE_PX]
    paint_texture(scene, whole, bank, Crop(colour=VERGE, step=(-5, -4, -3, 4)), level)
    bar_px = np.clip(river.bend * 18 - 4, 0, 20)
    scene.fill(whole, (distance < half_px + bar_px) & ~crossed & (bar_px > 1), SAND)
    scene.water |= (distance < half_px) & ~crossed
    depth = ((half_px - distance + np.clip(river.bend * -9, -9, 9)) / 8).astype(np.int32)
    shade = Crop(colour=WATER, step=(-3, -4, -4, -1))
    paint_texture(scene, whole, scene.water, shade, np.clip(depth, -1, 3) - 1)

    candidates = np.argwhere(
        (distance > half_px + bar_px + 4) & (distance < half_px + 20) & ~crossed
    )
    for _ in range(520):
        y, x = (int(value) for value in candidates[dice.whole(0, len(candidates))])
        if scene.mottle[y, x] > 105 and scene.clear_of((x, y), 5):
            scene.discs.append(tree(dice, (x, y), dice.between(3, 7)))


def highway_y(x: float) -> float:
    """Course of the main road: y in px, rounded to 1/64."""
    return sixty_fourth(1030 + 0.1875 * x + 50 * math.sin(x / 520))


def paint_highway(scene: Scene, dice: Dice) -> None:
    """Paint the main road with its markings, its bridge, and the cars on it."""
    highway = trace([(x, highway_y(x)) for x in range(-64, 2150, 32)], 16)
    distance, whole = highway.distance, np.s_[0:SIZE_PX, 0:SIZE_PX]
    scene.fill(whole, (distance < 12) & ~scene.water & ~scene.paved, VERGE)
    scene.fill(whole, (distance < 9) & scene.water, (188, 186, 178, 150))  # the parapet
    surface = distance < 7
    scene.fill(whole, surface, ASPHALT)
    scene.fill(whole, (distance >= 5.25) & (distance < 6), PAINT)
    dashes = highway.along.astype(np.int32) % 16 < 7
    scene.fill(whole, (distance < 0.55) & dashes, PAINT)
    scene.paved |= surface
    for _ in range(16):
        x = dice.between(0, SIZE_PX)
        lane_px = 3 if dice.chance(0.5) else -3
        scene.boxes.append(
            Box(
                centre=(x, highway_y(x) + lane_px),
                length_px=5,
                width_px=2.5,
                angle_deg=math.degrees(math.atan2(highway_y(x + 8) - highway_y(x - 8), 16)),
                height_px=2,
                colour=CARS[dice.whole(0, len(CARS))],
                gable=False,
            )
        )


def paint_wood(scene: Scene, centre: Point, radius_px: int, dice: Dice) -> None:
    """Paint a wood with a ragged outline and set its trees."""
    window, rows, cols = window_of([centre[0]], [centre[1]], radius_px + 60)
    dx, dy = cols - centre[0], (rows - centre[1]) * 1.375
    ragged = radius_px + (scene.mottle[window] - 128) / 2
    wood = (np.sqrt(dx * dx + dy * dy) < ragged) & ~scene.paved[window] & ~scene.water[window]
    scene.fill(window, wood, FOREST_FLOOR)
    top, left = window[0].start, window[1].start
    for y in range(0, wood.shape[0], 9):
        for x in range(0, wood.shape[1], 9):
            px, py = x + dice.between(-3, 3), y + dice.between(-3, 3)
            radius = dice.between(4, 7.5)
            if wood[
                min(max(int(py), 0), wood.shape[0] - 1), min(max(int(px), 0), wood.shape[1] - 1)
            ]:
                spot = (left + px, top + py)
                if scene.clear_of(spot, int(radius)):
                    scene.discs.append(tree(dice, spot, radius))


def build_lot(scene: Scene, lot: Plot, angle_deg: float, dice: Dice) -> None:
    """Paint a garden with a house, often a drive, a pool and trees."""
    lawn = Crop(colour=LAWN, step=(6, 5, 4, -5), mottle=dice.whole(0, 3))
    paint_field(scene, lot, lawn)
    x, y = lot.centre()
    if not scene.clear_of((x, y), 11) or dice.chance(0.08):
        return
    turned = angle_deg + 90 * dice.whole(0, 2)
    scene.boxes.append(
        Box(
            centre=(x, y),
            length_px=dice.between(13, 19),
            width_px=dice.between(9, 12),
            angle_deg=turned,
            height_px=dice.whole(6, 9),
            colour=ROOFS[dice.whole(0, len(ROOFS))],
        )
    )
    if dice.chance(0.18):
        pool = Box(
            centre=(x + 15, y + 4),
            length_px=8,
            width_px=4,
            angle_deg=turned,
            height_px=0,
            colour=(88, 178, 192, 40),
            gable=False,
        )
        scene.boxes.append(pool)
    for _ in range(dice.whole(1, 5)):
        spot = (sixty_fourth(x + dice.between(-26, 26)), sixty_fourth(y + dice.between(-26, 26)))
        near_house = abs(spot[0] - x) < 13 and abs(spot[1] - y) < 13
        if lot.contains(spot) and not near_house and scene.clear_of(spot, 4):
            scene.discs.append(tree(dice, spot, dice.between(2.5, 4.5)))


def build_farm(scene: Scene, centre: Point, angle_deg: float, dice: Dice) -> None:
    """Paint a farmyard with barns, a house and silos."""
    ux, uy = unit(angle_deg)

    def at(along: float, across: float) -> Point:
        return (
            sixty_fourth(centre[0] + along * ux - across * uy),
            sixty_fourth(centre[1] + along * uy + across * ux),
        )

    scene.fell(centre, 76)
    yard = Plot(corners=(at(-52, -36), at(52, -36), at(52, 36), at(-52, 36)), edges=("lot",) * 4)
    paint_field(scene, yard, Crop(colour=GRAVEL, step=(4, 4, 4, 3), mottle=2))
    for along, across, length, width, turn, height, colour in (
        (-24, -18, 42, 18, 0, 10, BARN_ROOFS[dice.whole(0, 3)]),
        (-30, 20, 34, 14, 0, 8, BARN_ROOFS[dice.whole(0, 3)]),
        (26, -14, 16, 30, 0, 9, BARN_ROOFS[dice.whole(0, 3)]),
        (26, 22, 17, 11, 0, 8, ROOFS[dice.whole(0, len(ROOFS))]),
    ):
        scene.boxes.append(
            Box(
                centre=at(along, across),
                length_px=length,
                width_px=width,
                angle_deg=angle_deg + turn,
                height_px=height,
                colour=colour,
            )
        )
    for along in (4, 4 + 10):
        silo = Disc(
            centre=at(along - 3, 12),
            radius_px=4.5,
            height_px=16,
            colour=(206, 206, 202, 170),
            flat=True,
        )
        scene.discs.append(silo)
    for across in range(-40, 44, 12):
        scene.discs.append(tree(dice, at(-60, across), dice.between(4, 6.5)))


def box_corners(box: Box) -> tuple[Point, ...]:
    """Corners of a box, clockwise on the screen, rounded to 1/64 px."""
    ux, uy = unit(box.angle_deg)
    half, side = box.length_px / 2, box.width_px / 2
    return tuple(
        (
            sixty_fourth(box.centre[0] + along * ux - across * uy),
            sixty_fourth(box.centre[1] + along * uy + across * ux),
        )
        for along, across in ((-half, -side), (half, -side), (half, side), (-half, side))
    )


def cast_shadows(scene: Scene) -> None:
    """Darken the ground once, wherever something keeps the sun off."""
    shadow = np.zeros((SIZE_PX, SIZE_PX), dtype=bool)
    for box in scene.boxes:
        corners = box_corners(box)
        for height in range(1, box.height_px + 1):
            dx, dy = sixty_fourth(height * SHADOW_DX), sixty_fourth(height * SHADOW_DY)
            moved = tuple((x + dx, y + dy) for x, y in corners)
            window, rows, cols = window_of([x for x, _ in moved], [y for _, y in moved])
            distances = edge_distances(moved, rows, cols)
            if distances.size:
                shadow[window] |= distances.min(axis=0) >= 0
    for disc in scene.discs:
        for height in {disc.height_px, disc.height_px // 2}:
            x = disc.centre[0] + sixty_fourth(height * SHADOW_DX)
            y = disc.centre[1] + sixty_fourth(height * SHADOW_DY)
            window, rows, cols = window_of([x], [y], int(disc.radius_px) + 1)
            shadow[window] |= (cols - x) ** 2 + (rows - y) ** 2 < disc.radius_px**2
    dark = scene.pixels[shadow].astype(np.int32) * np.array([112, 120, 136, 112]) // 256
    scene.pixels[shadow] = dark


def raise_boxes(scene: Scene) -> None:
    """Paint roofs: the half that faces the sun is lighter, the ridge lighter still."""
    for box in scene.boxes:
        corners = box_corners(box)
        window, rows, cols = window_of([x for x, _ in corners], [y for _, y in corners])
        distances = edge_distances(corners, rows, cols)
        if distances.size == 0:
            continue
        roof = distances.min(axis=0) >= 0
        colour = np.array(box.colour)
        scene.fill(window, roof, box.colour)
        if not box.gable:
            continue
        across = 0 if box.length_px >= box.width_px else 1  # the ridge runs the longer way
        ux, uy = unit(box.angle_deg + 90 * (1 - across))
        sunny_first = ux * SHADOW_DX + uy * SHADOW_DY > 0
        first = distances[across] if across == 0 else distances[3]
        second = distances[2] if across == 0 else distances[1]
        lit = (first < second) if sunny_first else (second < first)
        scene.fill(window, roof & ~lit, tuple(colour * 200 // 256))
        scene.fill(window, roof & lit, tuple(np.minimum(colour * 276 // 256, 250)))
        ridge = np.abs(first - second) < 1
        scene.fill(window, roof & ridge, tuple(np.minimum(colour * 300 // 256, 252)))


def raise_discs(scene: Scene) -> None:
    """Paint crowns in four shades from the sunny side to the other, and silos with a lit rim."""
    steps = np.array([9, 10, 6, 14])
    for disc in scene.discs:
        x, y = disc.centre
        window, rows, cols = window_of([x], [y], int(disc.radius_px) + 1)
        dx, dy = cols - x, rows - y
        inside = dx * dx + dy * dy < disc.radius_px**2
        facing = -(dx * SHADOW_DX + dy * SHADOW_DY) / disc.radius_px
        shade = (facing * 2.5 + 3).astype(np.int32) - 2
        scale = 2 if disc.flat else 1
        colours = np.array(disc.colour) + shade[..., None] * steps * scale
        scene.pixels[window][inside] = colours[inside]


def paint_land(scene: Scene, dice: Dice) -> None:
    """Divide the land into fields, and turn a few of them into other things."""
    angle_deg = -11.0
    ends = [unit(angle_deg + 45 + 90 * corner) for corner in range(4)]
    middle = SIZE_PX / 2
    land = Plot(
        corners=tuple((middle + 1900 * x, middle + 1900 * y) for x, y in ends), edges=("strip",) * 4
    )
    kinds = ("road", "road", "track", "track", "hedge", "strip")
    last = -1
    for plot in subdivide(land, dice, angle_deg, (70000, 190000), kinds):
        if any(plot.contains(point) for point in VILLAGE):
            lots = subdivide(plot, dice, angle_deg, (1500, 2500), ("street",) * 3 + ("lot",))
            for lot in lots:
                build_lot(scene, lot, angle_deg, dice)
            continue
        kind = dice.whole(0, len(CROPS))
        kind = (kind + 1) % len(CROPS) if kind == last else kind
        last = kind
        jitter = dice.whole(-7, 8)
        crop = CROPS[kind]
        red, green, blue, nir = (value + jitter for value in crop.colour)
        toned = Crop(**{**vars(crop), "colour": (red, green, blue, nir)})
        paint_field(scene, plot, toned)
        plant_hedges(scene, plot, dice)


def paint() -> npt.NDArray[np.uint8]:
    """Paint the scene.

    Returns
    -------
    uint8 array (band, y, x) of SIZE_PX squared, bands red, green, blue and near infrared.
    0 in all bands is nodata, the part beyond the swath's edge; valid pixels have no 0.
    """
    dice = Dice(SEED)
    mottle = (value_noise(256, 1) * 4 + value_noise(96, 2) * 3 + value_noise(32, 3)) // 8
    mottle = np.clip((mottle - 128) * 2 + 128, 0, 255).astype(np.int32)
    grain = value_noise(5, 4)
    scene = Scene(
        # Corners are rounded to 1/64 px, so a pixel can lie between plots: it is verge.
        pixels=np.full((SIZE_PX, SIZE_PX, 4), VERGE, dtype=np.int16),
        mottle=mottle,
        grain=(grain > 150).astype(np.int32) - (grain < 90),
        water=np.zeros((SIZE_PX, SIZE_PX), dtype=bool),
        paved=np.zeros((SIZE_PX, SIZE_PX), dtype=bool),
    )
    paint_land(scene, dice)
    paint_pivot(scene, (1560, 1640), 200)
    paint_river(scene, trace(meander((560.0, -60.0), 88, 58, 980), 70), dice)
    paint_highway(scene, dice)
    paint_wood(scene, (240, 420), 190, dice)
    for centre in ((980, 420), (300, 1640), (1850, 1180)):
        build_farm(scene, centre, -11.0, dice)
    scene.discs = [disc for disc in scene.discs if scene.clear_of(disc.centre, 3)]
    cast_shadows(scene)
    raise_boxes(scene)
    raise_discs(scene)

    valid_pixels = np.clip(scene.pixels, 1, 255).astype(np.uint8)
    rows, cols = np.ogrid[0:SIZE_PX, 0:SIZE_PX]
    beyond = (cols - 1690) * 5 > rows  # the swath's edge
    valid_pixels[beyond] = 0
    return np.ascontiguousarray(valid_pixels.transpose(2, 0, 1))
