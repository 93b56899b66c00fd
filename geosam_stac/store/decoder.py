"""The mask decoder of the model that encoded an Item: loaded once, asked chip by chip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import interpolate

from geosam_stac.encoders import load_model
from geosam_stac.encoders.checkpoints import default_cache_dir, resolve
from geosam_stac.encoders.prompts import Masks, Prompts, decode
from geosam_stac.encoders.weights import weights_sha256
from geosam_stac.errors import ConfigurationError, DataError
from geosam_stac.events import Sink, ignore
from geosam_stac.store.chip import StoredChip

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from geosam_stac.encoders.registry import ModelEntry
    from geosam_stac.store.scene import Scene

_UNTRAINED = "untrained"
# A mask as a prompt: the logits that SAM 2 itself makes of one (sam2_base.py,
# `_use_mask_as_output`: 20 * mask - 10, so that a sigmoid gives 1 or 0).
MASK_LOGIT = 10.0


class Decoder:
    """A model's prompt encoder and mask decoder.

    Parameters
    ----------
    entry
        Which model.
    model
        The whole upstream model, in eval mode (`encoders.load_model`).
    """

    def __init__(self, entry: ModelEntry, model: Any) -> None:
        self.entry = entry
        self._model = model

    @property
    def low_res_px(self) -> int:
        """Side of the decoder's masks, and of a mask prompt: 256, or 288 for SAM 3."""
        return 4 * self.entry.outputs[0].shape[1]

    def predict(self, chip: StoredChip, prompts: Prompts) -> Masks:
        """Prompt a chip.

        Parameters
        ----------
        chip
            Its features are read, and kept by the Item's cache.
        prompts
            In px of the model's input: `to_input`.

        Returns
        -------
        Masks
            Logits (M, H, W) of the chip's own pixels, on the CPU: those of the decoder, enlarged
            (bilinear) to the model's input, without its padding, then to the chip, as
            `segment_anything.modeling.Sam.postprocess_masks` does.

        Raises
        ------
        DataError
            The features lack a level that the decoder needs, or cannot be read.
        """
        try:
            found = decode(self.entry, self._model, chip.load(chip)[0], prompts)
        except DataError as error:
            raise error.at(chip=chip.id) from error.__cause__
        rows, cols = chip.content_px
        height, width = chip.geobox.shape
        size = chip.input_px
        logits = _enlarged(found.logits[None].float().cpu(), (size, size))
        logits = _enlarged(logits[:, :, :rows, :cols], (height, width))
        return Masks(logits=logits[0], scores=found.scores.float().cpu())

    def mask_prompt(self, chip: StoredChip, logits: NDArray[np.float32]) -> torch.Tensor:
        """Logits (H, W) of a chip's pixels as a mask prompt: (low_res_px, low_res_px)."""
        low = self.low_res_px
        rows, cols = (-(-side * low // chip.input_px) for side in chip.content_px)
        small = interpolate(torch.from_numpy(logits)[None, None], (rows, cols), mode="area")
        full = torch.full((low, low), -MASK_LOGIT)
        full[:rows, :cols] = small[0, 0]
        return full


def to_input(chip: StoredChip, x: float, y: float) -> tuple[float, float]:
    """A place in px of the chip, (x, y), as px of the model's input.

    By the shape that the chip was resized to, as `ResizeLongestSide.apply_coords` does.
    """
    rows, cols = chip.content_px
    height, width = chip.geobox.shape
    return x * cols / width, y * rows / height


def load_decoder(
    scene: Scene,
    checkpoint: str | None = None,
    *,
    cache_dir: Path | None = None,
    device: str = "cpu",
    sink: Sink = ignore,
    token: str | None = None,
) -> Decoder:
    """The decoder with the very weights that a scene was encoded with.

    Parameters
    ----------
    scene
        Its Item names the model, and the sha256 of the weights.
    checkpoint
        As for encode. None: the model's own file, from the cache or fetched; of an Item with
        untrained weights the same random ones.
    cache_dir
        Where checkpoints are kept.
    device
        cpu, cuda, ...: a decoder is quick enough on the CPU.
    sink, token
        Who hears of a fetch, and a Hugging Face token, for gated weights.

    Raises
    ------
    ConfigurationError
        The Item was encoded with other weights, or its model is unknown here.
    TemporaryError
        The weights cannot be fetched now.
    """
    entry = scene.model
    said = scene.item.properties
    expected = str(said.get("geosam:weights_sha256"))
    if checkpoint is None and str(said.get("geosam:weights")).startswith(_UNTRAINED):
        checkpoint = _random_weights(scene)
    if checkpoint is None and entry.sha256 not in (None, expected):
        raise _mismatch(scene, str(entry.sha256), f"the published ones of {entry.name}")
    weights = resolve(
        entry,
        checkpoint,
        cache_dir=cache_dir or default_cache_dir({}),
        sink=sink,
        token=token,
    )
    if weights.sha256 is not None and weights.sha256 != expected:
        raise _mismatch(scene, weights.sha256, weights.label)
    model = load_model(entry, weights, device)
    if weights.seed is not None:
        got = weights_sha256(weights, model)
        if got != expected:
            raise _mismatch(scene, got, weights.label)
    return Decoder(entry, model)


def _random_weights(scene: Scene) -> str:
    """`untrained:SEED`: the Item says no more than `untrained`, run.json has the seed."""
    try:
        label = json.loads(scene.read_key("run.json"))["run"]["model"]["weights"]
    except (DataError, ValueError, KeyError, TypeError, RecursionError):
        label = None
    is_said = isinstance(label, str) and label.startswith(_UNTRAINED)
    return label if is_said else f"{_UNTRAINED}:0"


def _mismatch(scene: Scene, got: str, what: str) -> ConfigurationError:
    return ConfigurationError(
        "the features were encoded with other weights: masks of these would mean nothing",
        item=scene.item.id,
        expected=f"weights of sha256 {scene.item.properties.get('geosam:weights_sha256')} "
        f"({scene.item.properties.get('geosam:weights')})",
        got=f"{got} ({what})",
        hint="Give the file that encoded them with --checkpoint"
        if not what.startswith(_UNTRAINED)
        else "Random weights differ between versions of torch: give --checkpoint untrained:SEED, "
        "and the torch that encoded them",
    )


def _enlarged(logits: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    if tuple(logits.shape[-2:]) == shape:
        return logits
    return interpolate(logits, shape, mode="bilinear", align_corners=False)
