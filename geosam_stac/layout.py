"""Names and keys of an output: what a scene's folder is called and where its files lie in it.

Pure string arithmetic (SPEC-geosam section 3, SPEC-stac section 2). Ids come from strangers, so
everything that becomes part of a key passes `sanitize` first. Imports `errors` and `types` only.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from geosam_stac.errors import GeosamStacError
from geosam_stac.types import Part

MAX_NAME_LENGTH = 128
"""Longest sanitized source id, in characters. With model, digest and `.json` it stays below the
255 bytes that file systems allow for one name."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_RESERVED = frozenset(
    {"manifest.parquet", "skipped.parquet", "run.json", "thumbnail.png", "journal", "parts"}
)


# Windows opens a device for these, whatever follows the first dot.
_DEVICES = frozenset(
    {"CON", "PRN", "AUX", "NUL"} | {f"{name}{n}" for name in ("COM", "LPT") for n in range(10)}
)


def sanitize(text: str, max_length: int = MAX_NAME_LENGTH) -> str:
    """Make one safe path segment of any text.

    Every character outside `[A-Za-z0-9._-]` becomes `_`; a name of dots only (`.`, `..`) becomes
    underscores; the empty text becomes `_`. A longer text is cut and ends with 8 hex digits of its
    sha256. Two texts may come to one name (`a/b` and `a_b`): the result is safe, not unique.

    Parameters
    ----------
    text
        Any text, such as the id of a source Item.
    max_length
        Longest result in characters; at least 10.

    Returns
    -------
    str
        1 to `max_length` characters of `[A-Za-z0-9._-]`.
    """
    name = _UNSAFE.sub("_", text)
    if not name.strip("."):
        name = "_" * max(1, len(name))
    if len(name) > max_length:
        # JSON allows lone surrogates in an id; plain UTF-8 does not encode them.
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        name = f"{name[: max_length - 9]}-{digest}"
    return name


def item_id(scene_id: str, model: str, digest_hex: str) -> str:
    """`<sanitized source id>_<model>_<first 8 hex of the config digest>` (SPEC-stac section 2)."""
    return f"{sanitize(scene_id)}_{sanitize(model)}_{digest_hex[:8]}"


def layer_name(scene_id: str) -> str:
    """The folder of a scene's features: its sanitized id, never the name of a file beside it.

    Nor one that Windows has no folders of: a device's, or one that ends with a dot.
    """
    name = sanitize(scene_id)
    if name.partition(".")[0].upper() in _DEVICES:
        return f"_{name}"
    # Compared without case: on macOS and Windows "Run.json" and "run.json" are one file.
    return f"{name}_" if name.lower() in _RESERVED or name.endswith(".") else name


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Keys of one scene's files, relative to the output root; POSIX, without a leading slash.

    `item_id` and `layer` must be sanitized already (`item_id()`, `layer_name()`). `suffix` is the
    ending of feature files.
    """

    item_id: str
    layer: str
    suffix: str = ".pt"

    def __post_init__(self) -> None:
        for name in (self.item_id, self.layer, f"chip{self.suffix}"):
            _check_segment(name)

    @property
    def folder(self) -> str:
        """The folder that holds everything of this scene."""
        return self.item_id

    @property
    def item(self) -> str:
        """The STAC Item, written last."""
        return f"{self.item_id}/{self.item_id}.json"

    @property
    def manifest(self) -> str:
        """The GeoParquet table of encoded chips."""
        return f"{self.item_id}/manifest.parquet"

    @property
    def skipped(self) -> str:
        """The GeoParquet table of chips without a feature."""
        return f"{self.item_id}/skipped.parquet"

    @property
    def run(self) -> str:
        """The full config and environment of the run."""
        return f"{self.item_id}/run.json"

    @property
    def thumbnail(self) -> str:
        """The small picture of the scene."""
        return f"{self.item_id}/thumbnail.png"

    @property
    def journal(self) -> str:
        """The folder of the record of finished chips; it goes when the Item is written."""
        return f"{self.item_id}/journal"

    @property
    def parts(self) -> str:
        """The folder of what several machines did of this scene; it goes with the journal."""
        return f"{self.item_id}/parts"

    def part(self, part: Part, suffix: str) -> str:
        """A file of one part."""
        return f"{self.parts}/{part.name}{suffix}"

    @property
    def features(self) -> str:
        """The folder of the features."""
        return f"{self.item_id}/{self.layer}/features"

    def feature(self, chip_id: str) -> str:
        """The feature file of a chip, relative to the output root."""
        return f"{self.item_id}/{self.feature_href(chip_id)}"

    def feature_href(self, chip_id: str) -> str:
        """The feature file of a chip, relative to the manifest."""
        _check_segment(chip_id)
        return f"{self.layer}/features/{chip_id}{self.suffix}"


def _check_segment(name: str) -> None:
    if not name.strip(".") or _UNSAFE.search(name):
        raise GeosamStacError(
            "a name is not safe as part of a key", expected="sanitized text", got=repr(name)
        )
