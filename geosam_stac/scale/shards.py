"""Who does what: a work list cut into shards, the same way by whoever asks. Pure arithmetic.

Every shard computes the whole cut for itself from the same list, so that none has to be told.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from geosam_stac.errors import UsageError
from geosam_stac.grid import BLOCK_CHIPS

# Kubernetes' Job controller sets it in each pod of an Indexed Job, from 0 on.
INDEX_VARIABLE = "JOB_COMPLETION_INDEX"


@dataclass(frozen=True, kw_only=True, order=True)
class Unit:
    """A scene, or one of the `parts` of a large one. `scene`: its place in the work list."""

    scene: int
    part: int = 0
    parts: int = 1
    chips: int


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Shard `index` of `count`, from 0 on."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UsageError(
                "--shard is none of the shards there are",
                expected="I/N with 0 <= I < N",
                got=f"{self.index}/{self.count}",
            )

    @property
    def name(self) -> str:
        """`00003-of-00008`: sorts as the number does."""
        return f"{self.index:05d}-of-{self.count:05d}"

    @classmethod
    def parse(cls, text: str, environ: Mapping[str, str]) -> Shard:
        """`I/N`, or `N` alone where `JOB_COMPLETION_INDEX` says which of them this is.

        Raises UsageError when it is neither, or the variable says something else than I.
        """
        match = re.fullmatch(r"(?:(\d{1,9})/)?(\d{1,9})", text.strip())
        if match is None:
            raise UsageError("--shard is not understood", expected="I/N, or N", got=repr(text))
        said = environ.get(INDEX_VARIABLE, "").strip()
        if said and not re.fullmatch(r"\d{1,9}", said):
            raise UsageError(f"{INDEX_VARIABLE} is no index", got=repr(said))
        if match[1] is None and not said:
            raise UsageError(
                "--shard does not say which shard this is",
                expected=f"I/N, or N with {INDEX_VARIABLE} in the environment",
                got=text,
            )
        if match[1] is not None and said and int(match[1]) != int(said):
            raise UsageError(
                f"--shard and {INDEX_VARIABLE} contradict each other",
                got=f"{match[1]} and {said}",
                hint="Give --shard N alone",
            )
        return cls(index=int(match[1] or said), count=int(match[2]))


def split(chips: Sequence[int], *, at_most: int) -> list[Unit]:
    """The scenes as units of about `at_most` chips: larger ones in equal parts.

    `chips` are the scenes' estimates, in the order of the work list.
    """
    units = []
    for scene, count in enumerate(chips):
        parts = max(1, -(-count // max(1, at_most)))
        units += [
            Unit(scene=scene, part=part, parts=parts, chips=_share(count, part, parts))
            for part in range(parts)
        ]
    return units


def cut(chips: Sequence[int], count: int) -> list[list[Unit]]:
    """The units of each of `count` shards, balanced by estimated chips.

    A scene of more than a shard's share is split into parts of about that share; then the largest
    unit that is left goes to the shard that has the least (Graham's LPT rule: at most 4/3 of the
    best makespan). Ties go to the first, so that every shard computes the same.
    """
    share = -(-sum(chips) // count)
    # A read block is the smallest part that a scene has.
    units = split(chips, at_most=max(BLOCK_CHIPS**2, share))
    shards: list[list[Unit]] = [[] for _ in range(count)]
    # A scene without a chip, or that nobody could look into, still takes a look.
    load = [(0, index) for index in range(count)]
    for unit in sorted(units, key=lambda unit: (-unit.chips, unit.scene, unit.part)):
        has, index = heapq.heappop(load)
        shards[index].append(unit)
        heapq.heappush(load, (has + max(1, unit.chips), index))
    return [sorted(units) for units in shards]


def _share(count: int, part: int, parts: int) -> int:
    return count * (part + 1) // parts - count * part // parts


def balance(shards: Iterable[Sequence[Unit]]) -> tuple[int, int]:
    """Chips of the smallest and of the largest shard."""
    loads = [sum(unit.chips for unit in units) for units in shards]
    return min(loads), max(loads)
