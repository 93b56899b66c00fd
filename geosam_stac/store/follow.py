"""One object's mask: prompted in the chip that knows it best, followed where it crosses a border.

Where a mask reaches a border of its chip beyond which the scene goes on, the neighbour there is
prompted in turn: with points inside the part of the object that both chips see, with that part as
a mask that leaves the rest open, and with what the user said of that chip. What it answers counts
where it joins on to what is known; so each pixel is counted once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import shapely

from geosam_stac.encoders.prompts import Masks, Prompts
from geosam_stac.store.decoder import MASK_LOGIT, to_input
from geosam_stac.store.pixels import Box, clipped, cropped, holds, joined, meet, polygons, runs
from geosam_stac.store.pixels import inside as inside_of
from geosam_stac.types import Window
from geosam_stac.windows import overlap, union

if TYPE_CHECKING:
    from collections.abc import Hashable

    import torch
    from numpy.typing import NDArray

    from geosam_stac.store.chip import StoredChip
    from geosam_stac.store.prompting import ObjectPrompt
    from geosam_stac.store.scene import Scene

    Mask = NDArray[np.bool_]

MAX_CHIPS = 32
"""Chips that one object is followed through: a river would go on to the end of the scene."""

# A neighbour that sees less than half of what both see has found something else.
MIN_AGREEMENT = 0.5
# Fewer px of a mask at a border are the interpolation's, not the object's: a decoder's mask has
# one value for 4 x 4 px of the model's input.
MIN_BORDER_PX = 4


class Predictor(Protocol):
    """What `decoder.Decoder` does."""

    def predict(self, chip: StoredChip, prompts: Prompts) -> Masks:
        """Logits of a chip's pixels, and scores."""

    def mask_prompt(self, chip: StoredChip, logits: NDArray[np.float32]) -> torch.Tensor:
        """Logits of a chip's pixels as `Prompts.mask`."""


@dataclass(frozen=True, kw_only=True)
class ObjectMask:
    """One mask of one object.

    `mask` (H, W) bool, True on the object, and `window`, its place in px of the scene's grid: no
    larger than the mask needs. `seen`: the pixels that its chips cover. `score`: the IoU that the
    model expects, 0 to 1; of several chips the mean by the pixels that each gave. `chips`: their
    ids, the first the one that was prompted. `complete`: False where the object goes on and no chip
    has features or agrees with what is known, or beyond `MAX_CHIPS` chips.
    """

    id: Hashable
    mask: Mask
    window: Window
    seen: Window
    score: float
    chips: tuple[str, ...]
    complete: bool = True


@dataclass(frozen=True, kw_only=True)
class _Border:
    """Where a mask reaches a border: the pixels beyond it, rows and columns in the scene's grid."""

    rows: NDArray[np.intp]
    cols: NDArray[np.intp]

    @property
    def middle(self) -> tuple[float, float]:
        """x, y of the middle one's centre."""
        half = len(self.rows) // 2
        return float(self.cols[half]) + 0.5, float(self.rows[half]) + 0.5


@dataclass(kw_only=True)
class _Known:
    """What is known of an object so far: each chip's part of it."""

    windows: list[Window] = field(default_factory=list)
    masks: list[Mask] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    chips: list[str] = field(default_factory=list)

    def add(self, chip: StoredChip, mask: Mask, score: float) -> None:
        self.windows.append(chip.window)
        self.masks.append(mask)
        self.scores.append(score)
        self.chips.append(chip.id)

    def within(self, window: Window) -> tuple[Mask, Mask]:
        """(on the object, seen at all) of a window's pixels."""
        on = np.zeros((window.height, window.width), dtype=bool)
        seen = np.zeros_like(on)
        for own, mask in zip(self.windows, self.masks, strict=True):
            if meet(window, own):
                here, there = overlap(window, own)
                on[here] |= mask[there]
                seen[here] = True
        return on, seen

    def result(self, name: Hashable, complete: bool) -> ObjectMask:
        seen = union(self.windows)
        mask, _ = self.within(seen)
        weights = [max(1, int(part.sum())) for part in self.masks]
        cut, window = cropped(mask, seen)
        return ObjectMask(
            id=name,
            mask=cut,
            window=window,
            seen=seen,
            score=float(np.average(self.scores, weights=weights)),
            chips=tuple(self.chips),
            complete=complete,
        )


def segment_object(
    scene: Scene,
    decoder: Predictor,
    prompt: ObjectPrompt,
    *,
    row: int,
    multimask: bool = False,
    follow: bool = True,
) -> list[ObjectMask]:
    """Prompt one object.

    Parameters
    ----------
    scene, decoder
        Whose features, and by which decoder.
    prompt
        The object.
    row
        The chip to prompt: `pick_chip`.
    multimask
        Three masks in place of one; they are not followed.
    follow
        Whether the object is followed into the neighbouring chips.

    Raises
    ------
    DataError
        Features are missing, damaged, or without the levels that the decoder needs.
    """
    chip = scene.chip_of_row(row)
    asked = _prompts(decoder, chip, prompt, multimask=multimask)
    answer = decoder.predict(chip, asked)
    if multimask or not follow:
        return [
            _alone(prompt.id, chip, logits.numpy() > 0, float(score))
            for logits, score in zip(answer.logits, answer.scores, strict=True)
        ]
    known = _Known()
    known.add(chip, answer.logits[0].numpy() > 0, float(answer.scores[0]))
    return [known.result(prompt.id, _follow(scene, decoder, prompt, known, row))]


def pick_chip(scene: Scene, prompt: ObjectPrompt) -> int:
    """The row of the chip to prompt: as Geo-SAM, that covers all of it and has the nearest centre.

    Where none covers all of it, the one that covers its first point, or its centre.

    Raises
    ------
    UsageError
        No chip with features is there.
    """
    index, affine = scene.index, scene.geobox.affine
    anchor = prompt.anchor
    for box, centre in ((prompt.bounds, prompt.centre), ((*anchor, *anchor), anchor)):
        rows = index.covering_px(box)
        if len(rows):
            return index.nearest(rows, *(affine * centre))
    raise scene.not_covered(shapely.Point(*(affine * anchor)), prompt.said)


def _follow(
    scene: Scene, decoder: Predictor, prompt: ObjectPrompt, known: _Known, row: int
) -> bool:
    """Prompt neighbours until no border is open; whether the object is complete then."""
    tried = {row}
    borders = deque(_borders(scene, known, 0))
    complete = True
    while borders:
        border = borders.popleft()
        if _seen_at(known, border.rows, border.cols).all():
            continue  # a chip that came in between sees beyond it
        onward = _neighbour(scene, border, tried)
        if onward is None or len(tried) >= MAX_CHIPS:
            complete = False
            continue
        tried.add(onward)
        chip = scene.chip_of_row(onward)
        found = _continued(decoder, chip, prompt, known, border)
        if found is None:
            borders.append(border)  # another neighbour may agree
            continue
        known.add(chip, *found)
        borders.extend(_borders(scene, known, len(known.chips) - 1))
    return complete


def _continued(
    decoder: Predictor,
    chip: StoredChip,
    prompt: ObjectPrompt,
    known: _Known,
    border: _Border,
) -> tuple[Mask, float] | None:
    """A neighbour's part of the object, and its score; None where it sees another one."""
    on, seen = known.within(chip.window)
    points = _inside(on, chip.window, border)
    asked = _prompts(decoder, chip, prompt, border=border, inside=points, known=(on, seen))
    answer = decoder.predict(chip, asked)
    mask = answer.logits[0].numpy() > 0
    if on.any() and (mask & on).sum() < MIN_AGREEMENT * on.sum():
        return None
    start = on.copy()
    for x, y in points:
        start[
            int(np.clip(y - chip.window.row_off, 0, chip.window.height - 1)),
            int(np.clip(x - chip.window.col_off, 0, chip.window.width - 1)),
        ] = True
    part = joined(mask, start)
    return (part, float(answer.scores[0])) if part.any() else None


def _prompts(
    decoder: Predictor,
    chip: StoredChip,
    prompt: ObjectPrompt,
    *,
    multimask: bool = False,
    border: _Border | None = None,
    inside: tuple[tuple[float, float], ...] = (),
    known: tuple[Mask, Mask] | None = None,
) -> Prompts:
    """What the user said of a chip, and what is known there already, in px of the model's input."""
    window = chip.window
    points = [*((point, 1) for point in inside)]
    points += [
        (point, label)
        for point, label in zip(prompt.points, prompt.labels, strict=True)
        if holds(window, *point)
    ]
    box = None if prompt.box is None else clipped(prompt.box, window)
    if box is not None and border is not None and not _reaches(box, border):
        box = None  # the object has left it: its part of this chip would be no one's box
    logits = None
    if prompt.mask is not None:
        logits = _painted(chip, prompt)
    elif known is not None and known[0].any():
        on, seen = known
        logits = np.where(on, MASK_LOGIT, np.where(seen, -MASK_LOGIT, 0)).astype(np.float32)
    local = [to_input(chip, x - window.col_off, y - window.row_off) for (x, y), _ in points]
    corners = None
    if box is not None:
        left, top = to_input(chip, box[0] - window.col_off, box[1] - window.row_off)
        right, bottom = to_input(chip, box[2] - window.col_off, box[3] - window.row_off)
        corners = (left, top, right, bottom)
    return Prompts(
        points=tuple(local),
        labels=tuple(label for _, label in points),
        box=corners,
        mask=None if logits is None else decoder.mask_prompt(chip, logits),
        multimask=multimask,
    )


def _painted(chip: StoredChip, prompt: ObjectPrompt) -> NDArray[np.float32]:
    """The user's mask on a chip's pixels, as logits."""
    from rasterio.features import rasterize

    inside = rasterize(
        [(prompt.mask, 1)],
        out_shape=tuple(chip.geobox.shape),
        transform=chip.geobox.affine,
        dtype="uint8",
    )
    return np.where(inside == 1, MASK_LOGIT, -MASK_LOGIT).astype(np.float32)


# Borders


def _reaches(box: Box, border: _Border) -> bool:
    """Whether a box holds the middle of a border."""
    x, y = border.middle
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def _borders(scene: Scene, known: _Known, number: int) -> list[_Border]:
    """Where a chip's part of the object reaches a border beyond which nothing is known yet."""
    window, mask = known.windows[number], known.masks[number]
    height, width = scene.geobox.shape
    bottom, right = window.row_off + window.height, window.col_off + window.width
    rows = np.arange(window.row_off, bottom)
    cols = np.arange(window.col_off, right)
    sides = (
        (mask[0], np.full_like(cols, window.row_off - 1), cols),
        (mask[-1], np.full_like(cols, bottom), cols),
        (mask[:, 0], rows, np.full_like(rows, window.col_off - 1)),
        (mask[:, -1], rows, np.full_like(rows, right)),
    )
    found = []
    for line, beyond_rows, beyond_cols in sides:
        if not (0 <= beyond_rows[0] < height and 0 <= beyond_cols[0] < width):
            continue  # the scene ends here
        open_ = line & ~_seen_at(known, beyond_rows, beyond_cols)
        for start, stop in runs(open_):
            if stop - start >= MIN_BORDER_PX:
                found.append(_Border(rows=beyond_rows[start:stop], cols=beyond_cols[start:stop]))
    return found


def _seen_at(known: _Known, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> Mask:
    seen = np.zeros(len(rows), dtype=bool)
    for own in known.windows:
        seen |= inside_of(own, rows, cols)
    return seen


def _neighbour(scene: Scene, border: _Border, tried: set[int]) -> int | None:
    """The untried chip that covers most of what lies beyond a border; of equals, the nearest."""
    rows = [row for row in scene.index.holding(border.rows, border.cols) if row not in tried]
    if not rows:
        return None
    windows = [scene.index.window(row) for row in rows]
    covered = np.array([inside_of(own, border.rows, border.cols).sum() for own in windows])
    best = np.array(rows)[covered == covered.max()]
    x, y = scene.geobox.affine * border.middle
    return scene.index.nearest(best, x, y)


def _inside(on: Mask, window: Window, border: _Border) -> tuple[tuple[float, float], ...]:
    """Points for a neighbour, in px of the scene's grid.

    One beyond the middle of the border, where the object goes on, and one well inside of what
    both chips see of it.
    """
    x, y = border.middle
    beyond = (
        float(np.clip(x, window.col_off + 0.5, window.col_off + window.width - 0.5)),
        float(np.clip(y, window.row_off + 0.5, window.row_off + window.height - 0.5)),
    )
    part = joined(on, _near_border(window, border))
    if not part.any():
        return (beyond,)
    largest = max(polygons(part), key=lambda polygon: polygon.area)
    circle = shapely.maximum_inscribed_circle(largest, tolerance=1.0)
    inner = shapely.get_coordinates(circle)[0]
    return ((float(inner[0]) + window.col_off, float(inner[1]) + window.row_off), beyond)


def _near_border(window: Window, border: _Border) -> Mask:
    """The pixels of a window at a border, on either side of it."""
    near = np.zeros((window.height, window.width), dtype=bool)
    for row_off in (-1, 0, 1):
        for col_off in (-1, 0, 1):
            rows = border.rows + row_off - window.row_off
            cols = border.cols + col_off - window.col_off
            fits = (rows >= 0) & (rows < window.height) & (cols >= 0) & (cols < window.width)
            near[rows[fits], cols[fits]] = True
    return near


def _alone(name: Hashable, chip: StoredChip, mask: Mask, score: float) -> ObjectMask:
    cut, window = cropped(mask, chip.window)
    return ObjectMask(
        id=name, mask=cut, window=window, seen=chip.window, score=score, chips=(chip.id,)
    )
