"""The vocabulary that every module shares: frozen, keyword-only dataclasses.

Imports no torch, no rasterio and nothing of the project but `errors` and `cards`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from geosam_stac import cards

if TYPE_CHECKING:
    import numpy as np
    import pystac
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox
    from odc.geo.geom import Geometry


REMOTE_FILES = ("/vsicurl", "/vsis3/", "/vsigs/", "/vsiaz/", "/vsiadls/", "/vsioss/", "/vsiswift/")

# For COGs: no listing of the folder, requests that follow each other merged into one.
GDAL_SETTINGS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "CPL_VSIL_CURL_USE_HEAD": "NO",
    # `retry` does it: GDAL's own would multiply with ours, and leaves out cut-off bodies.
    "GDAL_HTTP_MAX_RETRY": "0",
    # The messages that tell the HTTP status of each request: `raster_errors.heard_statuses`.
    "CPL_DEBUG": "VSICURL,S3,GS,AZURE,ADLS,OSS,SWIFT",
}


def gdal_settings(timeout_s: float, *, fresh: bool) -> dict[str, str]:
    """GDAL options for a read; a request ends after `timeout_s` of silence, or twice that in all.

    `fresh`: nothing that GDAL remembers of the file is used. It remembers a cut-off body as if it
    were whole, the length of an error page as the file's, and that a file "does not exist" whose
    server hung up. Remote reads that are tried again must start from nothing.
    """
    settings = GDAL_SETTINGS | {
        "GDAL_HTTP_CONNECTTIMEOUT": f"{min(10.0, timeout_s):g}",
        "GDAL_HTTP_LOW_SPEED_TIME": f"{max(1, round(timeout_s))}",  # whole seconds only
        "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
        "GDAL_HTTP_TIMEOUT": f"{2 * timeout_s:g}",
    }
    if fresh:
        # Beginnings of the names that are not remembered once they are closed, nor looked up.
        settings["CPL_VSIL_CURL_NON_CACHED"] = ":".join(REMOTE_FILES)
    return settings


class Access(Protocol):
    """How an asset's href is opened. Safe to use from several threads."""

    def sign(self, href: str) -> str:
        """The href to open now; it may hold a secret and must not be kept."""

    def options(self, href: str) -> Mapping[str, str]:
        """GDAL configuration options for this href alone; they may hold secrets."""

    def renew(self, href: str) -> bool:
        """After a 403: forget this href's signature; True if another one can be had."""


class Derivation(Protocol):
    """A band that is computed: `derive.Expression`."""

    @property
    def text(self) -> str:
        """As the user gave it."""

    def evaluate(self, bands: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Band name -> array with NaN for nodata; the result, likewise."""


class MaskRule(Protocol):
    """Which values of a mask band count as nodata: `derive.Mask`."""

    def hits(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """True = masked out."""


@dataclass(frozen=True, kw_only=True)
class PlainAccess:
    """No signatures: GDAL options only, as for requester pays or anonymous reads."""

    gdal: Mapping[str, str] = field(default_factory=dict)

    def sign(self, href: str) -> str:
        """As it is."""
        return href

    def options(self, href: str) -> Mapping[str, str]:
        """The options given, for every href."""
        return self.gdal

    def renew(self, href: str) -> bool:
        """Nothing to renew."""
        return False


@dataclass(frozen=True, kw_only=True)
class Band:
    """One band of one asset, as the scene uses it.

    `name` is what the user called it (or the name it was found by); `asset` the asset key;
    `index` the 1-based band number inside the asset's file; `href` absolute and unsigned.
    `source_href` is the href as the Item gives it, for reading alone: it may hold a signature.
    `dtype` is a numpy name, None while neither Item nor header has told it. `nodata` is a source
    value, NaN for "not a number", None when the source declares none. `geobox` is the band's own
    grid, None while neither Item nor header has told it. `scale` and `offset` make a physical
    value of a stored one (`raster:bands`): stored * scale + offset. `fenced`: a stranger named the
    file, so it is opened by `fence` alone.
    """

    name: str
    asset: str
    index: int
    href: str
    source_href: str = field(repr=False)
    dtype: str | None = None
    nodata: float | None = None
    common_name: str | None = None
    geobox: GeoBox | None = None
    scale: float = 1.0
    offset: float = 0.0
    fenced: bool = False


@dataclass(frozen=True, kw_only=True)
class Member:
    """One source Item of a scene: its bands, in the scene's order, and its mask bands."""

    item_id: str
    bands: tuple[Band, ...]
    masks: tuple[Band, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is encoded into one output Item: source Items, bands, output grid.

    `bands` are what is read of the first Item: 1 to 3 in RGB order, or what `expression` needs.
    `members` has the same of every Item, in the order in which they are laid over each other: the
    first valid pixel stands. `masks` say which pixels of the members' mask bands count as nodata.
    `scaled`: stored values become physical ones before anything is computed.

    `href` is the unsigned self link of the (first) source Item. `items` stay unsigned too.
    `geobox` is the output grid (the processing extent).
    `nodata` is the first band's. `datetime` is in UTC, None when the Item has only a range.
    `area` (in the CRS of `geobox`) narrows the extent: chips that do not touch it are skipped.
    """

    id: str
    collection: str | None
    href: str
    items: tuple[pystac.Item, ...]
    bands: tuple[Band, ...]
    geobox: GeoBox
    nodata: float | None
    datetime: datetime | None
    area: Geometry | None = None
    notices: tuple[str, ...] = ()
    members: tuple[Member, ...] = ()
    expression: Derivation | None = None
    masks: tuple[MaskRule, ...] = ()
    scaled: bool = False


@dataclass(frozen=True, kw_only=True)
class Window:
    """A rectangle of pixels in a scene's grid: offsets and sizes in px."""

    row_off: int
    col_off: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class ChipRef:
    """One chip's place: id (`chip_000042`, row-major), grid row and column, window, geobox."""

    chip_id: str
    row: int
    col: int
    window: Window
    geobox: GeoBox


@dataclass(frozen=True, kw_only=True)
class ChipGrid:
    """How a scene is cut: square chips of `chip_px` every `stride_px`, flush with the edges."""

    geobox: GeoBox
    chip_px: int
    stride_px: int


@dataclass(frozen=True, kw_only=True)
class BlockRef:
    """A rectangle that is read at once, and the chips that it serves (all lie inside it)."""

    window: Window
    geobox: GeoBox
    chips: tuple[ChipRef, ...]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Part `index` (from 0 on) of the `count` that a scene's read blocks are split into."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"no part {self.index} of {self.count}")

    @property
    def name(self) -> str:
        """`00003-of-00008`: sorts as the number does."""
        return f"{self.index:05d}-of-{self.count:05d}"


WHOLE = Part(index=0, count=1)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Pixels of one window of the scene.

    `pixels`: (B, h, w) uint8, B from 1 to 3, black where a band is not valid. `valid`: (h, w) bool,
    True where any band is valid (inside the source, not nodata, not masked); None: all are.
    """

    window: Window
    pixels: NDArray[np.uint8]
    valid: NDArray[np.bool_] | None


@dataclass(frozen=True, kw_only=True)
class Block:
    """Pixels of one BlockRef: tiles, without overlap, that together hold its window."""

    ref: BlockRef
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One image for the encoder.

    `pixels`: (3, S, S) uint8, RGB order, S = the model's input; the image content fills the top
    left `content_px` (rows, columns), what lies beyond is padding (any value: the encoder
    overwrites it with the model's mean). `valid_fraction`: 0 to 1, of the chip's own pixels.
    """

    ref: ChipRef
    pixels: NDArray[np.uint8]
    content_px: tuple[int, int]
    valid_fraction: float


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One output tensor of an encoder: name, shape (C, h, w), stride in input px (SAM 3: 3.5)."""

    name: str
    shape: tuple[int, int, int]
    stride_px: float


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """An encoder that is loaded, with the identity of its weights.

    `mean`, `std`: per RGB channel, of 0..255 values. `weights`: how they were named, for humans
    (`upstream`, a file's base name, `untrained:0`). `checkpoint_name`: the Geo-SAM base name.
    """

    name: str
    family: str
    weights_sha256: str
    weights: str
    checkpoint_name: str
    input_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True)
class Features:
    """The encoder's output for one chip: `tensors` name -> (C, h, w) torch tensor on the CPU."""

    ref: ChipRef
    tensors: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One encoded chip; the columns and their meaning stand in `manifest.COLUMNS`."""

    ref: ChipRef
    feature_href: str
    valid_fraction: float
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SkippedRow:
    """A chip that has no feature, with its reason."""

    ref: ChipRef
    reason: str
    valid_fraction: float


@dataclass(frozen=True, kw_only=True)
class EncodeResult:
    """What one scene came to.

    `item` is the output Item and `href` where it lies. `bytes_read` counts decoded source pixels,
    `bytes_written` what went to the output; `seconds` by stage (busy time, summed over threads)
    plus `total` (wall time); `busy` by stage: which fraction of the time, 0 to 1, its threads were
    at work while all stages ran. The one that was busiest has set the pace.
    `retries`: what was tried again, by kind (read, header, write, ...). `thumbnail`: the PNG beside
    the Item; None where an earlier run has written it.
    """

    item: pystac.Item
    href: str
    chips_encoded: int
    chips_resumed: int
    chips_skipped: int
    chips_failed: int
    bytes_read: int
    bytes_written: int
    seconds: Mapping[str, float]
    busy: Mapping[str, float]
    retries: Mapping[str, int] = field(default_factory=dict)
    thumbnail: bytes | None = None

    def __repr__(self) -> str:
        return cards.plain(self.item.id, self._facts())

    def _repr_html_(self) -> str:
        """What a notebook shows; nothing is read for it."""
        return cards.card(self.item.id, self._facts(), png=self.thumbnail)

    def _facts(self) -> dict[str, object]:
        chips = {
            "encoded": self.chips_encoded,
            "there already": self.chips_resumed,
            "skipped": self.chips_skipped,
            "failed": self.chips_failed,
        }
        said = self.item.properties
        facts: dict[str, object] = {
            "model": said.get("mlm:name"),
            "weights": said.get("geosam:weights"),
            "CRS": said.get("proj:code"),
            "chips": ", ".join(f"{count:,} {name}" for name, count in chips.items() if count),
            "read": cards.megabytes(self.bytes_read),
            "written": cards.megabytes(self.bytes_written),
            "time": f"{self.seconds.get('total', 0):,.1f} s",
        }
        if self.retries:
            facts["tried again"] = ", ".join(f"{n:,} {kind}" for kind, n in self.retries.items())
        return facts | {"Item": self.href}

    @property
    def slowest(self) -> str | None:
        """The stage that has set the pace; None where nothing ran."""
        return max(self.busy, key=lambda name: self.busy[name]) if any(self.busy.values()) else None


@dataclass(frozen=True, kw_only=True)
class PartResult:
    """What one part of a scene came to; as `EncodeResult`. `item_id`: of the Item to be."""

    item_id: str
    part: Part
    chips_encoded: int = 0
    chips_resumed: int = 0
    chips_skipped: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
