"""Geometry and noise that come out the same on every machine; `landscape.py` paints with them.

Integer arithmetic, or IEEE +, -, *, / and sqrt on coordinates rounded to 1/64 px: never a sine of
an array, whose last bit differs between processors. Randomness is `random.Random.random`, whose
sequence Python guarantees, and an integer hash. Imports numpy and nothing of geosam_stac.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SIZE_PX = 2048

# Axes and units throughout: x to the right and y down, in pixels.
Point = tuple[float, float]
Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Window = tuple[slice, slice]


class Dice:
    """Scalars drawn from the one part of `random` whose sequence is the same in every Python."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def between(self, low: float, high: float) -> float:
        """Draw from [low, high), rounded to 1/64 so that later arithmetic is exact."""
        return sixty_fourth(low + (high - low) * self._random.random())

    def whole(self, low: int, high: int) -> int:
        """Draw an integer from low to high - 1."""
        return low + int((high - low) * self._random.random())

    def chance(self, probability: float) -> bool:
        """Say yes with this probability."""
        return self._random.random() < probability


def sixty_fourth(value: float) -> float:
    """Round to 1/64: sums and products of such numbers are exact in float64."""
    return math.floor(value * 64 + 0.5) / 64


def value_noise(cell_px: int, seed: int) -> Ints:
    """Smooth noise, int32 (y, x), 0 to 255, correlated over `cell_px`; integers only."""
    count = SIZE_PX // cell_px + 2
    rows, cols = np.meshgrid(
        np.arange(count, dtype=np.uint64), np.arange(count, dtype=np.uint64), indexing="ij"
    )
    # splitmix64's finalizer (Steele et al. 2014) over the lattice; uint64 wraps by definition.
    state = (rows * np.uint64(0x9E3779B97F4A7C15)) ^ (cols * np.uint64(0xC2B2AE3D27D4EB4F))
    state ^= np.uint64(seed * 0x165667B19E3779F9 % 2**64)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    lattice = ((state ^ (state >> np.uint64(31))) & np.uint64(255)).astype(np.int64)

    position = np.arange(SIZE_PX, dtype=np.int64)
    cell, within = position // cell_px, (position % cell_px) * 256 // cell_px
    weight = within * within * (768 - 2 * within) // 65536  # smoothstep, 0 to 256
    along = lattice[:, cell] * (256 - weight) + lattice[:, cell + 1] * weight
    both = along[cell] * (256 - weight)[:, None] + along[cell + 1] * weight[:, None]
    return (both // 65536).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A convex piece of land. `edges[i]` says what lies along corner i to corner i + 1."""

    corners: tuple[Point, ...]
    edges: tuple[str, ...]

    def area_px(self) -> float:
        """Area by the shoelace formula."""
        pairs = zip(self.corners, self.corners[1:] + self.corners[:1], strict=True)
        return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs)) / 2

    def centre(self) -> Point:
        """Mean of the corners."""
        count = len(self.corners)
        return (
            sixty_fourth(sum(x for x, _ in self.corners) / count),
            sixty_fourth(sum(y for _, y in self.corners) / count),
        )

    def contains(self, point: Point) -> bool:
        """Whether the point lies inside; corners run clockwise on the screen."""
        pairs = zip(self.corners, self.corners[1:] + self.corners[:1], strict=True)
        return all(
            (x1 - x0) * (point[1] - y0) - (y1 - y0) * (point[0] - x0) >= 0
            for (x0, y0), (x1, y1) in pairs
        )

    def extent_px(self, direction: Point) -> float:
        """Length of the plot's shadow on a direction."""
        along = [x * direction[0] + y * direction[1] for x, y in self.corners]
        return max(along) - min(along)

    def split(self, origin: Point, normal: Point, edge: str) -> tuple[Plot, Plot] | None:
        """Cut along a line; None when the line misses the plot."""
        sides = [(x - origin[0]) * normal[0] + (y - origin[1]) * normal[1] for x, y in self.corners]
        halves: list[tuple[list[Point], list[str]]] = [([], []), ([], [])]
        for here, corner in enumerate(self.corners):
            there = (here + 1) % len(self.corners)
            near, far = sides[here], sides[there]
            half = halves[near < 0]
            half[0].append(corner)
            half[1].append(self.edges[here])
            if (near < 0) != (far < 0):
                share = near / (near - far)
                cut = (
                    sixty_fourth(corner[0] + share * (self.corners[there][0] - corner[0])),
                    sixty_fourth(corner[1] + share * (self.corners[there][1] - corner[1])),
                )
                half[0].append(cut)
                half[1].append(edge)
                halves[near >= 0][0].append(cut)
                halves[near >= 0][1].append(self.edges[here])
        if not all(halves[0]) or not all(halves[1]):
            return None
        first, second = (
            Plot(corners=tuple(corners), edges=tuple(edges)) for corners, edges in halves
        )
        return first, second


def unit(angle_deg: float) -> Point:
    """Direction of an angle, rounded to 1/1024."""
    radians = math.radians(angle_deg)
    return (round(math.cos(radians) * 1024) / 1024, round(math.sin(radians) * 1024) / 1024)


def subdivide(
    plot: Plot, dice: Dice, angle_deg: float, limits_px: Point, edges: tuple[str, ...]
) -> list[Plot]:
    """Cut a plot into plots until each is below an area drawn from `limits_px`.

    The first cuts are along `edges[0]`, deeper ones along the next; the last kind stays.
    """
    if plot.area_px() < dice.between(*limits_px):
        return [plot]
    tilt = angle_deg + dice.between(-3, 3)
    along, across = unit(tilt), unit(tilt + 90)
    normal = along if plot.extent_px(along) > plot.extent_px(across) else across
    centre = plot.centre()
    shift = dice.between(-0.14, 0.14) * plot.extent_px(normal)
    origin = (
        sixty_fourth(centre[0] + shift * normal[0]),
        sixty_fourth(centre[1] + shift * normal[1]),
    )
    halves = plot.split(origin, normal, edges[0])
    if halves is None:
        return [plot]
    rest = edges[1:] or edges
    return [leaf for half in halves for leaf in subdivide(half, dice, angle_deg, limits_px, rest)]


def window_of(xs: list[float], ys: list[float], margin_px: int = 0) -> tuple[Window, Ints, Ints]:
    """Pixels around some points: the window, and its y as a column and x as a row."""
    top, bottom = max(0, int(min(ys)) - margin_px), min(SIZE_PX, int(max(ys)) + margin_px + 2)
    left, right = max(0, int(min(xs)) - margin_px), min(SIZE_PX, int(max(xs)) + margin_px + 2)
    bottom, right = max(top, bottom), max(left, right)
    rows = np.arange(top, bottom, dtype=np.int32)[:, None]
    cols = np.arange(left, right, dtype=np.int32)[None, :]
    return np.s_[top:bottom, left:right], rows, cols


def edge_distances(corners: tuple[Point, ...], rows: Ints, cols: Ints) -> Floats:
    """Distance inwards from each edge's line, float64 (edge, y, x), px; negative is outside."""
    planes = []
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = math.sqrt((x1 - x0) ** 2 + (y1 - y0) ** 2) or 1.0
        planes.append(((x1 - x0) * (rows - y0) - (y1 - y0) * (cols - x0)) / length)
    return np.stack(planes)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line across the picture, and where the pixels near it lie: float64 (y, x), px.

    `distance` to it, `along` it from its start, and `bend`: positive on the inside of a bend.
    """

    distance: Floats
    along: Floats
    bend: Floats


def trace(points: list[Point], reach_px: int) -> Curve:
    """Measure every pixel within `reach_px` against a polyline."""
    distance = np.full((SIZE_PX, SIZE_PX), 1e6)
    along = np.zeros_like(distance)
    bend = np.zeros_like(distance)
    walked = 0.0
    for index, ((x0, y0), (x1, y1)) in enumerate(itertools.pairwise(points)):
        length = math.sqrt((x1 - x0) ** 2 + (y1 - y0) ** 2)
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        x2, y2 = points[min(index + 6, len(points) - 1)]
        x3, y3 = points[max(index - 5, 0)]
        turn = (x1 - x3) * (y2 - y1) - (y1 - y3) * (x2 - x1)
        window, rows, cols = window_of([x0, x1], [y0, y1], reach_px)
        forward = np.clip((cols - x0) * ux + (rows - y0) * uy, 0, length)
        dx, dy = cols - (x0 + forward * ux), rows - (y0 + forward * uy)
        away = np.sqrt(dx * dx + dy * dy)
        near = away < distance[window]
        side = np.where(ux * dy - uy * dx > 0, 1.0, -1.0)
        distance[window][near] = away[near]
        along[window][near] = (walked + forward)[near]
        bend[window][near] = (side * (turn / 1024))[near]
        walked += length
    return Curve(distance=distance, along=along, bend=bend)


def meander(start: Point, heading_deg: float, swing_deg: float, wave_px: float) -> list[Point]:
    """A river's course as a sine-generated curve (Langbein and Leopold 1966)."""
    points, (x, y), step = [start], start, 12
    for index in range(480):
        phase = 2 * math.pi * index * step / wave_px
        swing = swing_deg * (0.85 + 0.3 * math.sin(phase * 0.37 + 1))
        radians = math.radians(heading_deg + swing * math.sin(phase) + 9 * math.sin(phase * 0.43))
        x, y = (
            sixty_fourth(x + step * math.cos(radians)),
            sixty_fourth(y + step * math.sin(radians)),
        )
        points.append((x, y))
        if not (-200 < x < SIZE_PX + 200 and -200 < y < SIZE_PX + 200):
            break
    return points
