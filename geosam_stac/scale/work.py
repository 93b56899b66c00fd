"""One unit of work on one machine: a whole scene, or a part of one. What the engines call."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pystac

from geosam_stac.config import EncodeConfig
from geosam_stac.errors import GeosamStacError
from geosam_stac.pipeline import encode_part, encode_scene
from geosam_stac.scale.shards import Unit
from geosam_stac.session import Session
from geosam_stac.sources.groups import Group
from geosam_stac.sources.itemfiles import item_line
from geosam_stac.types import EncodeResult, Part, PartResult

Source = pystac.Item | Group


@dataclass(frozen=True, kw_only=True)
class UnitResult:
    """What a unit came to: `whole` of a scene that is one unit, `part` of a part, or an error.

    Exactly one of the three is set.
    """

    unit: Unit
    name: str
    whole: EncodeResult | None = None
    part: PartResult | None = None
    error: GeosamStacError | None = None

    @property
    def href(self) -> str | None:
        """Of the scene's Item, once it is written."""
        return None if self.whole is None else self.whole.href

    @property
    def item_id(self) -> str | None:
        """Of the Item that is, or is to be."""
        if self.whole is not None:
            return self.whole.item.id
        return self.part.item_id if self.part is not None else None


def encode_unit(session: Session, source: Source, unit: Unit, config: EncodeConfig) -> UnitResult:
    """Encode a scene, or one part of it; errors are raised.

    Raises
    ------
    GeosamStacError
        As `encode_scene`.
    """
    scene = session.scene(source)
    if unit.parts == 1:
        whole = encode_scene(session, scene, config)
        return UnitResult(unit=unit, name=source.id, whole=whole)
    part = Part(index=unit.part, count=unit.parts)
    return UnitResult(unit=unit, name=source.id, part=encode_part(session, scene, config, part))


def estimated_chips(session: Session, source: Source | None) -> int:
    """Chips of a scene as its Item tells them; 0 where only the files could tell.

    Everyone who asks gets the same answer, whatever the network does: no file is read.
    """
    if source is None:
        return 0
    try:
        return session.plan(source).chips
    except GeosamStacError:
        return 0


def digest_of(sources: Iterable[Source | str], config: EncodeConfig, count: int) -> str:
    """sha256 (hex) of a run: its Items in their order, its options, its number of shards.

    Reports of one run are found by it. `str`: the href of an Item that could not be read. The
    device has no part in it: shards may run on several kinds, and the finalizer on none.
    """
    digest = hashlib.sha256()
    options = config.digest(
        model=config.model,
        weights_sha256=config.checkpoint or "",
        precision=config.precision,
        chip_px=config.chip_size or 0,
        stride_px=config.stride or 0,
    )
    digest.update(f"{options}\n{count}\n".encode())
    for source in sources:
        for line in _lines(source):
            digest.update(line.encode("utf-8", "backslashreplace") + b"\n")
        digest.update(b"\n")
    return digest.hexdigest()


def _lines(source: Source | str) -> Sequence[str]:
    if isinstance(source, str):
        return [source]
    if isinstance(source, Group):
        return [item_line(item) for item in source.items]
    return [item_line(source)]
