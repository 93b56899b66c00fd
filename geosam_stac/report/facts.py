"""What a report says: plain data, read by `gather`, drawn by `page`. Imports nothing of ours.

All of it comes from documents of strangers, so every value is taken as what it should be, or is
missing: `text`, `number` and `mapping` let nothing else through.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_TEXT = 600
"""Characters of one value: a page of a thousand scenes must stay one that opens."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much of an output is put on the page, so that its size is bounded.

    `scenes`: listed, with their footprints. `details`: with pictures and chips. `chips`: drawn, and
    `pca_chips`: whose features are read for pictures that are not stored, over the whole page.
    `rows`: of a table of skipped chips, and of that of failed scenes.
    """

    scenes: int = 2000
    details: int = 20
    chips: int = 20_000
    rows: int = 100
    pca_chips: int = 500


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image for the page: a `data:` URI, its size, and what it shows.

    `scene_px`: (width, height) of the area that it covers, in px of the scene's grid, from its
    upper left corner.
    """

    uri: str
    width: int
    height: int
    scene_px: tuple[float, float]
    note: str


@dataclass(frozen=True, kw_only=True)
class Chips:
    """The chips of a scene on its grid: those with a feature first, then the skipped ones.

    `shape`: rows and columns of the grid; `affine`: a to f of it. `windows`: (N, 4) int64, row and
    column offset, height and width in px. `centres`: (N, 2) longitude and latitude. `places`: (N,
    2) row and column in the grid of chips. `valid`: (N,) fraction. `sizes`: bytes, 0 of skipped
    ones. `reasons`: of the skipped ones, in their order.
    """

    shape: tuple[int, int]
    affine: tuple[float, ...]
    ids: tuple[str, ...]
    windows: NDArray[np.int64]
    centres: NDArray[np.float64]
    places: NDArray[np.int64]
    valid: NDArray[np.float64]
    sizes: NDArray[np.int64]
    reasons: tuple[str, ...]

    @property
    def encoded(self) -> int:
        """How many have a feature."""
        return len(self.ids) - len(self.reasons)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What `run.json` says of the last run over a scene."""

    device: str
    batch_size: str
    bytes_read: float | None
    seconds: Mapping[str, float]
    busy: Mapping[str, float]
    retries: Mapping[str, float]
    config: Mapping[str, str]
    given: Mapping[str, str]
    python: str
    platform: str
    software: Mapping[str, str]

    @property
    def slowest(self) -> str | None:
        """The stage that has set the pace."""
        return max(self.busy, key=lambda name: self.busy[name]) if any(self.busy.values()) else None


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A chip without a feature."""

    id: str
    row: int
    col: int
    reason: str
    valid: float


@dataclass(frozen=True, kw_only=True)
class Details:
    """What only some scenes are shown with. `skipped`: the first of them; `reasons`: all counted.

    `no_pca`: why there is no picture of the embeddings.
    """

    chips: Chips | None
    thumbnail: Picture | None
    pca: Picture | None
    no_pca: str
    skipped: tuple[Skipped, ...]
    reasons: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A feature Item.

    `facts`: name -> value, as text, in the order in which they are shown. `files`: name -> bytes.
    `outline`: rings of (longitude, latitude); longitudes run on across the antimeridian.
    `problems`: what of it could not be read.
    """

    id: str
    href: str
    model: str
    weights: str
    weights_sha256: str
    crs: str
    resolution: str
    moment: str
    created: str
    lineage: str
    sources: tuple[tuple[str, str], ...]
    facts: Mapping[str, str]
    chips: int
    skipped: int
    failed: int
    feature_bytes: int | None
    files: Mapping[str, int]
    outline: tuple[tuple[tuple[float, float], ...], ...]
    run: Run | None
    details: Details | None = None
    problems: tuple[str, ...] = ()

    @property
    def is_random(self) -> bool:
        """Whether its weights were never trained."""
        return self.weights.startswith("untrained")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A scene that could not be encoded, or an Item that could not be read."""

    name: str
    code: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """All of an output. `left_out`: scenes beyond `Limits.scenes`, that were not read."""

    place: str
    scenes: tuple[Scene, ...]
    failures: tuple[Failure, ...]
    left_out: int
    limits: Limits = field(default_factory=Limits)


def text(value: object) -> str:
    """A value as one short line, empty for None; lists as their members."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        value = ", ".join(text(part) for part in value[:100])
    said = f"{value:.10g}" if isinstance(value, float) else str(value)
    return said if len(said) <= MAX_TEXT else said[: MAX_TEXT - 1] + "…"


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def count(value: object) -> int:
    """A whole number from 0 on; what is none counts as 0."""
    found = number(value)
    return 0 if found is None else max(0, int(found))


def mapping(value: object) -> Mapping[str, Any]:
    """A JSON object, or an empty one."""
    return value if isinstance(value, dict) else {}


def listed(value: object) -> list[Any]:
    """A JSON list, or an empty one."""
    return value if isinstance(value, list) else []
