"""How source values become 0..255: what `--value-range` says, read once for config and pixels."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from geosam_stac.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ValueRange:
    """How source values become 0..255.

    `kind` "auto": min and max of the scene's valid pixels (uint8 passes through untouched);
    "fixed": `lo` and `hi` are source values; "percentile": `lo` and `hi` are percentiles, 0..100.
    """

    kind: Literal["auto", "fixed", "percentile"]
    lo: float = math.nan
    hi: float = math.nan

    @classmethod
    def parse(cls, text: str) -> ValueRange:
        """Read `auto`, `MIN,MAX` or `pLO,pHI` (as in `p2,p98`); UsageError otherwise."""
        if text.strip().lower() == "auto":
            return cls(kind="auto")
        number = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
        percentile = re.fullmatch(rf"\s*p{number}\s*,\s*p{number}\s*", text)
        fixed = re.fullmatch(rf"\s*{number}\s*,\s*{number}\s*", text)
        match = percentile or fixed
        if match is None:
            raise UsageError(
                "--value-range is not understood",
                expected="auto, MIN,MAX (as 0,3000) or pLO,pHI (as p2,p98)",
                got=repr(text),
            )
        lo, hi = float(match[1]), float(match[2])
        if not math.isfinite(hi - lo):
            raise UsageError("--value-range is beyond all numbers", got=repr(text))
        if lo >= hi:
            raise UsageError(
                "--value-range needs a minimum below its maximum", expected="MIN < MAX", got=text
            )
        if percentile and (lo < 0 or hi > 100):
            raise UsageError("--value-range percentiles must lie between 0 and 100", got=repr(text))
        return cls(kind="percentile" if percentile else "fixed", lo=lo, hi=hi)
