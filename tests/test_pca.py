"""Embeddings as colours."""

from __future__ import annotations

import json

import numpy as np
import pytest

from geosam_stac import pca
from geosam_stac.errors import DataError


def cloud(count: int = 4000, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(n, 8) vectors that vary along three known directions by 9, 4 and 1; and these directions."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((8, 8)))[0][:3]
    scores = rng.standard_normal((count, 3)) * [9, 4, 1]
    return scores @ axes + np.arange(8) + 1e-3 * rng.standard_normal((count, 8)), axes


def test_the_components_are_the_directions_of_the_variance():
    vectors, axes = cloud()
    fitted = pca.fit(vectors)
    assert np.abs(np.abs(fitted.components @ axes.T) - np.eye(3)).max() < 0.02
    np.testing.assert_allclose(fitted.mean, np.arange(8), atol=0.5)
    np.testing.assert_allclose(fitted.explained, np.array([81, 16, 1]) / 98, atol=0.02)
    assert fitted.samples == 4000


def test_it_agrees_with_the_singular_value_decomposition():
    vectors, _ = cloud(seed=1)
    _, _, rows = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    dots = np.sum(pca.fit(vectors).components * rows[:3], axis=1)
    np.testing.assert_allclose(np.abs(dots), 1, atol=1e-9)


def test_signs_do_not_depend_on_the_sample():
    for seed in range(5):
        fitted = pca.fit(cloud(seed=seed)[0])
        peaks = fitted.components[np.arange(3), np.abs(fitted.components).argmax(axis=1)]
        assert (peaks > 0).all()
    first, other = (pca.fit(cloud(count, seed=3)[0][:1000]) for count in (1000, 4000))
    assert np.sum(first.components * other.components, axis=1).min() > 0.99


def test_two_percent_at_either_end_are_clipped():
    vectors, _ = cloud()
    shown = pca.fit(vectors).colours(vectors.T.reshape(8, 40, 100))
    for band in shown:
        assert 0.015 < (band < 0).mean() < 0.025
        assert 0.015 < (band > 1).mean() < 0.025
    pixels = pca.to_rgb8(shown)
    assert (pixels.min(), pixels.max()) == (1, 255)  # 0 is nodata


def test_a_vector_has_one_colour_in_every_chip():
    vectors, _ = cloud()
    fitted = pca.fit(vectors)
    chip = vectors[:16].T.reshape(8, 4, 4)
    other = np.roll(chip, 1, axis=2).astype(np.float32)
    np.testing.assert_allclose(
        fitted.colours(other), np.roll(fitted.colours(chip), 1, axis=2), atol=1e-5
    )


def test_half_floats_are_taken():
    vectors, _ = cloud()
    fitted = pca.fit(vectors.astype(np.float16))
    shown = fitted.colours(vectors[:16].T.reshape(8, 4, 4).astype(np.float16))
    assert np.abs(shown - pca.fit(vectors).colours(vectors[:16].T.reshape(8, 4, 4))).max() < 0.02


def test_a_direction_without_variance_is_grey():
    vectors = np.zeros((50, 5)) + 7
    vectors[:, 2] += np.arange(50)
    fitted = pca.fit(vectors)
    shown = fitted.colours(vectors.T.reshape(5, 5, 10))
    assert (shown[1:] == 0.5).all()
    assert np.ptp(shown[0]) > 1
    alike = pca.fit(np.full((9, 5), 3.0))
    assert (alike.colours(np.full((5, 2, 2), 3.0)) == 0.5).all()
    assert (alike.explained == 0).all()


def test_it_survives_its_file():
    fitted = pca.fit(cloud()[0])
    again = pca.Projection.from_json(fitted.to_json())
    assert again.samples == fitted.samples
    for name in ("mean", "components", "low", "high", "explained"):
        np.testing.assert_array_equal(getattr(again, name), getattr(fitted, name))
    assert again.to_json() == fitted.to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [1.0]},
        {"components": [[0.0] * 8] * 2},
        {"low": "x"},
        {"samples": None},
        {"high": [float("nan")] * 3},
    ],
)
def test_another_file_is_refused(change):
    document = json.loads(pca.fit(cloud()[0]).to_json()) | change
    with pytest.raises(DataError, match="cannot be read"):
        pca.Projection.from_json(json.dumps(document).encode())
    with pytest.raises(DataError, match="cannot be read"):
        pca.Projection.from_json(b"[]")


def test_what_does_not_fit_is_refused():
    fitted = pca.fit(cloud()[0])
    with pytest.raises(DataError, match=r"expected \(8, h, w\); got \(7, 2, 2\)"):
        fitted.colours(np.zeros((7, 2, 2)))
    with pytest.raises(DataError, match="no vectors"):
        pca.fit(np.zeros((0, 8)))


def test_a_sample_depends_on_seed_and_name_alone():
    embedding = np.arange(3 * 100).reshape(3, 10, 10)
    first = pca.sample(embedding, name="chip_000001", count=20)
    assert first.shape == (20, 3)
    assert {tuple(row) for row in first} <= {tuple(row) for row in embedding.reshape(3, 100).T}
    assert len({tuple(row) for row in first}) == 20
    np.testing.assert_array_equal(first, pca.sample(embedding, name="chip_000001", count=20))
    assert (first != pca.sample(embedding, name="chip_000002", count=20)).any()
    assert (first != pca.sample(embedding, name="chip_000001", count=20, seed=1)).any()
    assert pca.sample(embedding, name="chip_000001", count=200).shape == (100, 3)
