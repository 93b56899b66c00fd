"""Whether a derived band is another one for being computed of stored values. Arithmetic alone.

NDVI of stored Sentinel-2 values with an offset of -0.1 is not NDVI, and looks like it.
"""

from __future__ import annotations

import numpy as np

from geosam_stac.derive import Expression
from geosam_stac.types import Band

# Physical values to try: reflectances, unlike each other, so that no difference cancels out.
_PHYSICAL = np.linspace(0.05, 0.6, 7, dtype=np.float64)
_TOLERANCE = 1e-3


def unscaled_notice(
    expression: Expression, bands: tuple[Band, ...], *, is_index: bool
) -> str | None:
    """What to tell of a derived band that is computed without `--scaled`; None: nothing.

    Parameters
    ----------
    expression
        What is computed.
    bands
        The bands it names.
    is_index
        It is a spectral index, which is defined of physical values: a scale alone is told too,
        where it changes the result (the constants of EVI). Of other expressions an offset is.
    """
    odd = [band for band in bands if band.offset or (is_index and band.scale != 1)]
    if not odd or _same(expression, bands):
        return None
    said = ", ".join(f"{band.name} ({_of(band)})" for band in odd)
    what = "--index" if is_index else "--expression"
    return (
        f"{what} is computed of the values as they are stored, but the Item gives {said}: "
        "give --scaled, unless the pixels hold physical values already"
    )


def _same(expression: Expression, bands: tuple[Band, ...]) -> bool:
    """Whether stored and physical values give one result."""
    physical, stored = {}, {}
    for number, band in enumerate(bands):
        physical[band.name] = np.roll(_PHYSICAL, number)
        stored[band.name] = (physical[band.name] - band.offset) / (band.scale or 1.0)
    return np.allclose(
        expression.evaluate(physical),
        expression.evaluate(stored),
        rtol=_TOLERANCE,
        atol=1e-6,
        equal_nan=True,
    )


def _of(band: Band) -> str:
    parts = [("scale", band.scale, 1.0), ("offset", band.offset, 0.0)]
    return ", ".join(f"{name} {value:g}" for name, value, plain in parts if value != plain)
