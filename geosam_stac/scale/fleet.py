"""What a work list costs on N machines, on paper: arithmetic on plans and rates that are named."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from geosam_stac.errors import UsageError
from geosam_stac.planning import Plan

# A pod begins: image pulled on a warm node, Python and torch imported, weights read, model built.
START_S = 90.0


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """An estimate, with all that it rests on.

    `rate` in chips/s of one worker and `rate_source` in words; `start_s` until a worker's first
    chip. `hours` from start to finish with `workers` at a time; `worker_hours` of all of them, the
    figure that is paid for; `read_mb_s` and `write_mb_s` are what each worker must be given for
    the device not to wait. `price` per worker-hour and `cost`: None where no price was given.
    """

    scenes: int
    chips: int
    bytes_to_read: int
    bytes_to_write: int
    objects: int
    workers: int
    rate: float
    rate_source: str
    start_s: float
    hours: float
    worker_hours: float
    read_mb_s: float
    write_mb_s: float
    price: float | None
    cost: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


def estimate(
    plans: Sequence[Plan],
    *,
    workers: int,
    rate: float,
    rate_source: str,
    price: float | None = None,
    start_s: float = START_S,
) -> Fleet:
    """Time and cost of encoding these scenes with `workers` machines that never fail.

    The device sets the pace: reading and writing run beside it, and are fast enough where each
    worker gets `read_mb_s` and `write_mb_s`. Chips are spread evenly, large scenes split.

    Raises
    ------
    UsageError
        No workers, or a rate or price that is none.
    """
    if workers < 1:
        raise UsageError("--fleet must be at least 1", got=str(workers))
    if not (math.isfinite(rate) and rate > 0):
        raise UsageError("--rate must be a positive number of chips a second", got=f"{rate:g}")
    if price is not None and not (math.isfinite(price) and price >= 0):
        raise UsageError("--price must be 0 or more", got=f"{price:g}")
    chips = sum(plan.chips for plan in plans)
    to_read = sum(plan.bytes_to_read for plan in plans)
    to_write = sum(plan.bytes_to_write for plan in plans)
    busy = min(workers, chips)  # a worker without a chip is not started
    encode_s = math.ceil(chips / busy) / rate if chips else 0.0
    total_s = chips / rate + busy * start_s
    worker_hours = total_s / 3600
    return Fleet(
        scenes=len(plans),
        chips=chips,
        bytes_to_read=to_read,
        bytes_to_write=to_write,
        objects=sum(plan.objects for plan in plans),
        workers=workers,
        rate=rate,
        rate_source=rate_source,
        start_s=start_s,
        hours=(encode_s + (start_s if chips else 0.0)) / 3600,
        worker_hours=worker_hours,
        read_mb_s=to_read / 1e6 / chips * rate if chips else 0.0,
        write_mb_s=to_write / 1e6 / chips * rate if chips else 0.0,
        price=price,
        cost=None if price is None else worker_hours * price,
    )
