"""Embeddings as colours: a principal component analysis of a scene's vectors, fitted once.

Pure numpy: no torch, no files. The same sample always gives the same colours.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from geosam_stac.errors import DataError

COLOURS = 3
LOW_PERCENT, HIGH_PERCENT = 2.0, 98.0
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Projection:
    """From an embedding of C channels to three colours, the same for every chip of a scene.

    `mean`: (C,). `components`: (3, C), orthonormal rows, the largest variance first, in each the
    entry of the largest magnitude positive. `low`, `high`: (3,), the scores that become 0 and 1.
    `explained`: (3,), the fraction of the sample's variance that each component holds.
    `samples`: how many vectors it was fitted on.
    """

    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    explained: NDArray[np.float64]
    samples: int

    def colours(self, embedding: NDArray[Any]) -> NDArray[np.float32]:
        """(C, h, w) of any real dtype -> (3, h, w) float32; 0 to 1 between `low` and `high`.

        Not clipped, so that colours can be blended first: `to_rgb8` clips.

        Raises
        ------
        DataError
            The embedding has another number of channels than the projection.
        """
        if embedding.ndim != 3 or embedding.shape[0] != len(self.mean):
            raise DataError(
                "an embedding does not fit the scene's colours",
                expected=f"({len(self.mean)}, h, w)",
                got=str(embedding.shape),
            )
        flat = embedding.reshape(len(self.mean), -1).astype(np.float64) - self.mean[:, None]
        scores = self.components @ flat
        span = np.where(self.high > self.low, self.high - self.low, np.inf)
        scaled = (scores - self.low[:, None]) / span[:, None]
        # A component without variance says nothing: middle grey, not black.
        scaled[self.high <= self.low] = 0.5
        return scaled.reshape(COLOURS, *embedding.shape[1:]).astype(np.float32)

    def to_json(self) -> bytes:
        """The projection as a JSON document."""
        arrays = {name: getattr(self, name).tolist() for name in _ARRAYS}
        document = {
            "type": "geosam-stac PCA",
            "version": VERSION,
            "samples": self.samples,
            **arrays,
        }
        return (json.dumps(document, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """What `to_json` wrote.

        Raises
        ------
        DataError
            It is something else.
        """
        try:
            document = json.loads(data)
            arrays = {name: np.asarray(document[name], dtype=np.float64) for name in _ARRAYS}
            samples = int(document["samples"])
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise _unreadable(type(error).__name__) from error
        channels = arrays["mean"].size
        shapes = {"mean": (channels,), "components": (COLOURS, channels)}
        for name, array in arrays.items():
            if array.shape != shapes.get(name, (COLOURS,)) or not np.isfinite(array).all():
                raise _unreadable(f"{name} of shape {array.shape}")
        return cls(**arrays, samples=samples)


_ARRAYS = ("mean", "components", "low", "high", "explained")


def fit(vectors: NDArray[Any]) -> Projection:
    """Fit the projection to a sample of a scene's vectors.

    Parameters
    ----------
    vectors
        (n, C), n at least 1, of any real dtype. With fewer than three directions of variance the
        components that are left have none, and show as grey.

    Returns
    -------
    Projection
        By the eigenvectors of the covariance, in float64; clipped at 2 and 98 % of the sample.
    """
    sample = np.asarray(vectors, dtype=np.float64)
    if sample.ndim != 2 or len(sample) == 0 or sample.shape[1] < COLOURS:
        raise DataError(
            "there are no vectors to take colours from",
            expected=f"at least one vector of {COLOURS} or more channels",
            got=str(sample.shape),
        )
    mean = sample.mean(axis=0)
    centred = sample - mean
    values, vectors_ = np.linalg.eigh(centred.T @ centred / len(centred))
    components = vectors_[:, ::-1][:, :COLOURS].T
    # eigh leaves the sign open: another version of LAPACK would swap light and dark.
    peaks = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    components = np.where(peaks < 0, -components, components)
    variances = np.maximum(values[::-1], 0)
    total = variances.sum()
    scores = centred @ components.T
    low, high = np.percentile(scores, (LOW_PERCENT, HIGH_PERCENT), axis=0)
    # What is left of rounding in a flat direction is no colour.
    flat = high - low <= 1e-9 * max(1.0, float(np.abs(sample).max()))
    return Projection(
        mean=mean,
        components=components,
        low=low,
        high=np.where(flat, low, high),
        explained=variances[:COLOURS] / total if total > 0 else np.zeros(COLOURS),
        samples=len(sample),
    )


def sample(embedding: NDArray[Any], *, name: str, count: int, seed: int = 0) -> NDArray[Any]:
    """At most `count` of a chip's vectors, (n, C), drawn by the seed and the chip's name alone.

    So the sample of a scene does not depend on the order in which its chips are read.
    """
    vectors = embedding.reshape(embedding.shape[0], -1).T
    if len(vectors) <= count:
        return vectors
    rng = np.random.default_rng([seed, zlib.crc32(name.encode("utf-8", "surrogatepass"))])
    return vectors[np.sort(rng.choice(len(vectors), size=count, replace=False))]


def to_rgb8(colours: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Colours of 0 to 1, clipped, as 1 to 255: 0 is left for nodata."""
    shown: NDArray[np.uint8] = (1 + np.rint(np.clip(colours, 0, 1) * 254)).astype(np.uint8)
    return shown


def _unreadable(got: str) -> DataError:
    return DataError(
        "the stored colours of a scene cannot be read",
        expected="what `geosam-stac preview` writes",
        got=got,
        hint="Make the picture again with `geosam-stac preview --refit`",
    )
