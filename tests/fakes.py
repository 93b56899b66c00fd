"""A model that is cheap and exact: 64 px chips, tensors that are plain averages of the pixels."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from geosam_stac.config import EncodeConfig
from geosam_stac.encoders.base import Pending
from geosam_stac.encoders.checkpoints import Weights
from geosam_stac.encoders.registry import MODELS, ModelEntry, find_model
from geosam_stac.events import Event
from geosam_stac.session import Session
from geosam_stac.types import EncoderSpec, TensorSpec

INPUT_PX = 64


def entry_of(input_px: int) -> ModelEntry:
    """SAM 2.1 tiny with another input."""
    names = {"image_embed": 4, "high_res_feats_0": 16, "high_res_feats_1": 8}
    return dataclasses.replace(
        find_model("sam2.1-hiera-tiny"),
        input_px=input_px,
        outputs=tuple(
            TensorSpec(name=name, shape=(3, side, side), stride_px=input_px // side)
            for name, side in names.items()
        ),
        tflop_per_chip=0.5,
    )


ENTRY = entry_of(INPUT_PX)


class FakeEncoder:
    """The protocol of `encoders.base.ImageEncoder`. `before(chips)` may raise; it runs first."""

    def __init__(
        self,
        weights: Weights,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        feature_dtype: str = "float16",
        levels: str = "all",
        compile: str = "off",
        before: Callable[[int], None] = lambda chips: None,
    ) -> None:
        self.device, self.precision, self.feature_dtype = device, precision, feature_dtype
        self.compile = compile
        self.before = before
        self.batches: list[int] = []
        self.freed = 0
        self.threads: set[str] = set()
        entry = weights.entry
        self.spec = EncoderSpec(
            name=entry.name,
            family=entry.family,
            weights_sha256=weights.sha256 or hashlib.sha256(weights.label.encode()).hexdigest(),
            weights=weights.label,
            checkpoint_name=entry.checkpoint_name,
            input_px=entry.input_px,
            mean=entry.mean,
            std=entry.std,
            outputs=entry.outputs_at(levels),
        )

    def encode(self, pixels: np.ndarray, content_px: tuple[int, int]) -> dict[str, torch.Tensor]:
        assert pixels.dtype == np.uint8
        assert pixels.shape[1:] == (3, self.spec.input_px, self.spec.input_px)
        self.threads.add(threading.current_thread().name)
        self.before(len(pixels))
        self.batches.append(len(pixels))
        images = torch.from_numpy(pixels).to(torch.float32)
        images[:, :, content_px[0] :] = 0
        images[:, :, :, content_px[1] :] = 0
        return {
            output.name: torch.nn.functional.avg_pool2d(images, output.stride_px).to(
                torch.float32
                if self.feature_dtype == "int8"
                else getattr(torch, self.feature_dtype)
            )
            for output in self.spec.outputs
        }

    def submit(self, pixels: np.ndarray, content_px: tuple[int, int]) -> Pending:
        tensors = self.encode(pixels, content_px)
        return lambda: tensors

    def fitting_batch(self) -> int:
        return 4

    def free_cached_memory(self, *, if_short: bool = False) -> None:
        self.freed += 1


class FakeModel:
    """What the fixture `fake_model` gives: encoders that were built, and what they shall do."""

    def __init__(self) -> None:
        self.loaded: list[FakeEncoder] = []
        self.before: Callable[[int], None] = lambda chips: None

    @property
    def encoder(self) -> FakeEncoder:
        return self.loaded[-1]

    def _before(self, chips: int) -> None:
        self.before(chips)

    def load(self, entry: ModelEntry, weights: Weights, **options: str) -> FakeEncoder:
        self.loaded.append(FakeEncoder(weights, before=self._before, **options))
        return self.loaded[-1]


def install(monkeypatch: pytest.MonkeyPatch, *, input_px: int = INPUT_PX) -> FakeModel:
    """sam2.1-hiera-tiny becomes the fake wherever a Session looks for it."""
    fake = FakeModel()
    own = ENTRY if input_px == INPUT_PX else entry_of(input_px)

    def find(name: str) -> ModelEntry:
        entry = find_model(name)
        return own if entry.name == own.name else entry

    monkeypatch.setattr("geosam_stac.session.find_model", find)
    monkeypatch.setattr("geosam_stac.session.load_encoder", fake.load)
    assert ENTRY not in MODELS
    return fake


def fake_session(tmp_path: Path, events: list[Event] | None = None, **options: object) -> Session:
    """A session with the fake model (which must be installed) and small chips."""
    given = {
        "model": "sam2.1-hiera-tiny",
        "checkpoint": "untrained",
        "device": "cpu",
        "stride": 32,
        "out": str(tmp_path / "out"),
    } | options
    return Session(
        EncodeConfig.of(given),
        cache_dir=tmp_path / "cache",
        sink=(lambda event: None) if events is None else events.append,
    )
