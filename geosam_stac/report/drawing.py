"""The page's drawings as SVG: footprints on a grid of degrees, chips over a picture. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

from geosam_stac.report.facts import Chips, Picture, Scene
from geosam_stac.report.markup import esc

WIDTH, LEAST_HEIGHT, MOST_HEIGHT = 720.0, 240.0, 320.0
KM_PER_DEGREE = 111.2  # of latitude, on a sphere of 6371 km
_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 45, 60, 90)
_DOT = 10.0  # a footprint smaller than this is marked by a dot, too


class _Projection:
    """Plate carree at the footprints' middle latitude: (longitude, latitude) -> x, y."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        west, east = min(x for x, _ in points), max(x for x, _ in points)
        south, north = min(y for _, y in points), max(y for _, y in points)
        # A point has a surrounding, too.
        pad = max(0.12 * max(east - west, north - south), 0.005)
        self.west, self.east = west - pad, east + pad
        self.south, self.north = max(-90.0, south - pad), min(90.0, north + pad)
        self.squeeze = max(0.05, math.cos(math.radians((self.south + self.north) / 2)))
        across = (self.east - self.west) * self.squeeze
        down = self.north - self.south
        self.height = min(MOST_HEIGHT, max(LEAST_HEIGHT, WIDTH * down / across))
        self.scale = min(WIDTH / across, self.height / down)
        # What is left over on one axis shows more of the surroundings.
        spare_x = (WIDTH / self.scale / self.squeeze - (self.east - self.west)) / 2
        spare_y = (self.height / self.scale - down) / 2
        self.west, self.east = self.west - spare_x, self.east + spare_x
        self.south, self.north = self.south - spare_y, self.north + spare_y

    def __call__(self, x: float, y: float) -> tuple[float, float]:
        return (x - self.west) * self.scale * self.squeeze, (self.north - y) * self.scale


def footprints(scenes: Sequence[Scene], targets: Sequence[str]) -> str:
    """A map of the scenes' footprints in longitude and latitude, each a link to its `target`.

    Empty where no scene has a footprint.
    """
    points = [point for scene in scenes for ring in scene.outline for point in ring]
    if not points:
        return ""
    place = _Projection(points)
    marks = "".join(
        _footprint(scene, target, place)
        for scene, target in zip(scenes, targets, strict=True)
        if scene.outline
    )
    return (
        f'<svg class="map" viewBox="0 0 {WIDTH:g} {place.height:.1f}" role="group" '
        f'aria-label="Map of the footprints in longitude and latitude">'
        f'<rect class="sea" width="{WIDTH:g}" height="{place.height:.1f}"/>'
        f"{_graticule(place)}{marks}{_scale_bar(place)}</svg>"
    )


def _footprint(scene: Scene, target: str, place: _Projection) -> str:
    rings = [[place(*point) for point in ring] for ring in scene.outline]
    path = "".join(
        "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in ring) + "Z" for ring in rings if ring
    )
    xs = [x for ring in rings for x, _ in ring]
    ys = [y for ring in rings for _, y in ring]
    dot = ""
    if max(max(xs) - min(xs), max(ys) - min(ys)) < _DOT:
        x, y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
        dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    kind = "some" if scene.skipped else "all"
    title = f"{scene.id}: {scene.chips:,} chips, {scene.skipped:,} skipped"
    return (
        f'<a href="#{target}" class="footprint {kind}"><title>{esc(title)}</title>'
        f'<path d="{path}"/>{dot}</a>'
    )


def _graticule(place: _Projection) -> str:
    out = []
    for values, name in (
        (_ticks(place.west, place.east), "EW"),
        (_ticks(place.south, place.north), "NS"),
    ):
        for value, digits in values:
            if name == "EW":
                x = place(value, place.north)[0]
                out.append(f'<path class="degree" d="M{x:.1f} 0V{place.height:.1f}"/>')
                value = (value + 180) % 360 - 180  # noqa: PLW2901 - 181 E is 179 W
                at = f'x="{x + 4:.1f}" y="{place.height - 6:.1f}"'
                room = x < WIDTH - 60
            else:
                y = place(place.west, value)[1]
                out.append(f'<path class="degree" d="M0 {y:.1f}H{WIDTH:g}"/>')
                at = f'x="5" y="{y - 4:.1f}"'
                room = 24 < y < place.height - 26
            if room:
                half = name[0] if value >= 0 else name[1]
                out.append(f"<text {at}>{abs(value):.{digits}f}° {half}</text>")
    return "".join(out)


def _ticks(low: float, high: float) -> Iterator[tuple[float, int]]:
    """Round values between two, four or five of them, and how many decimals they have."""
    step = next((one for one in _STEPS if (high - low) / one <= 5), _STEPS[-1])
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    for index in range(math.ceil(low / step), math.floor(high / step) + 1):
        yield index * step, digits


def _scale_bar(place: _Projection) -> str:
    km_per_unit = KM_PER_DEGREE / place.scale
    most = WIDTH / 4 * km_per_unit
    nice = 10 ** math.floor(math.log10(most))
    km = next(nice * factor for factor in (5, 2, 1) if nice * factor <= most)
    length = km / km_per_unit
    x, y = WIDTH - 14 - length, 16.0
    said = f"{km:g} km" if km >= 1 else f"{1000 * km:g} m"
    return (
        f'<g class="scale"><path d="M{x:.1f} {y - 5:g}v5h{length:.1f}v-5"/>'
        f'<text x="{x + length / 2:.1f}" y="{y + 16:g}" text-anchor="middle">{said}</text></g>'
    )


def chips_over(picture: Picture, chips: Chips | None, label: str, *, outlines: bool) -> str:
    """A picture in px of the scene's grid, the chips over it: `outlines`, and those skipped."""
    width, height = picture.scene_px
    if chips is not None:
        height, width = chips.shape
    drawn = ""
    if chips is not None:
        shown = range(chips.encoded) if outlines else ()
        drawn = (
            f'<path class="chip" d="{_boxes(chips, shown)}"/>'
            f'<path class="skipped" d="{_boxes(chips, range(chips.encoded, len(chips.ids)))}"/>'
            '<rect class="picked" width="0" height="0"/>'
        )
    return (
        f'<svg class="picture" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{esc(label)}"><image href="{picture.uri}" '
        f'width="{picture.scene_px[0]:g}" height="{picture.scene_px[1]:g}" '
        f'preserveAspectRatio="none"/>{drawn}</svg>'
    )


def _boxes(chips: Chips, rows: Sequence[int]) -> str:
    """All of them as one path: a rectangle each would be ten times as much."""
    lines = []
    for row in rows:
        row_off, col_off, height, width = (int(value) for value in chips.windows[row])
        lines.append(f"M{col_off} {row_off}h{width}v{height}h-{width}z")
    return "".join(lines)


def chips_json(chips: Chips, crs: str) -> str:
    """What the page's script knows of the chips; safe inside a `script` element."""
    rows: list[list[object]] = []
    for index, name in enumerate(chips.ids):
        row: list[object] = [
            name,
            *(int(value) for value in chips.windows[index]),
            *(int(value) for value in chips.places[index]),
            round(100 * float(chips.valid[index]), 1),
            int(chips.sizes[index]),
            *(round(float(v), 6) if math.isfinite(v) else None for v in chips.centres[index]),
        ]
        if index >= chips.encoded:
            row.append(chips.reasons[index - chips.encoded])
        rows.append(row)
    document = {"crs": crs, "affine": list(chips.affine), "chips": rows}
    said = json.dumps(document, separators=(",", ":"), allow_nan=False)
    # Of a script element nothing but its end tag is read: no "<", no end.
    return said.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
