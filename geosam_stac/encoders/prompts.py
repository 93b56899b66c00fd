"""Prompts on features that are encoded already: in go points, boxes, masks; out come mask logits.

Each family's module has the decoding; this one has the vocabulary, and the check that the
features suffice. Coordinates are px of the model's input, (x, y), origin at the top left corner.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from torch import nn

from geosam_stac.encoders import FAMILIES
from geosam_stac.encoders.registry import ModelEntry
from geosam_stac.errors import DataError, UsageError


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What one object is prompted with.

    `points`: (x, y) in px of the model's input. `labels`: one a point, 1 on the object, 0 off it.
    `box`: x0, y0, x1, y1 in the same px. `mask`: logits (h, w) of the size of a decoder's answer,
    > 0 on the object, 0 where it is not known. `multimask`: three masks for one object, where it
    is ambiguous, instead of one.

    Raises
    ------
    UsageError
        Neither point nor box nor mask, or not one label a point.
    """

    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None
    mask: torch.Tensor | None = field(default=None, compare=False)
    multimask: bool = False

    def __post_init__(self) -> None:
        if not self.points and self.box is None and self.mask is None:
            raise UsageError("a prompt needs a point, a box or a mask")
        if len(self.labels) != len(self.points) or not set(self.labels) <= {0, 1}:
            raise UsageError(
                "every point needs a label, 1 (on the object) or 0 (off it)",
                expected=f"{len(self.points)} labels",
                got=str(self.labels),
            )

    def tensors(
        self, like: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Points (1, P, 2), labels (1, P) and box (1, 4), on the device of `like`; None each."""
        device = like.device
        points = labels = box = None
        if self.points:
            points = torch.tensor([self.points], dtype=torch.float32, device=device)
            labels = torch.tensor([self.labels], dtype=torch.int32, device=device)
        if self.box is not None:
            box = torch.tensor([self.box], dtype=torch.float32, device=device)
        return points, labels, box

    def mask_tensor(self, like: torch.Tensor) -> torch.Tensor | None:
        """The mask as (1, 1, h, w) float32, on the device of `like`."""
        return None if self.mask is None else self.mask[None, None].to(like.device, torch.float32)


@dataclass(frozen=True, kw_only=True)
class Masks:
    """A decoder's answer: `logits` (M, h, w), a mask is where they are > 0; `scores` (M,).

    M is 1, or 3 with `multimask`. h and w are a quarter of the model's input (256, or 288 for
    SAM 3); the input's padding is among them. `scores`: the IoU that the model expects.
    """

    logits: torch.Tensor
    scores: torch.Tensor


class _Family(Protocol):
    def decode(
        self, model: nn.Module, tensors: Mapping[str, torch.Tensor], prompts: Prompts
    ) -> Masks: ...


def decode(
    entry: ModelEntry, model: nn.Module, tensors: Mapping[str, torch.Tensor], prompts: Prompts
) -> Masks:
    """Prompt one chip's features, with the model's own prompt encoder and mask decoder, in fp32.

    Parameters
    ----------
    entry, model
        From `registry.find_model` and `load_model`.
    tensors
        Name -> (C, h, w), of one chip, in any floating dtype: `features.read` gives them.
    prompts
        In px of the model's input: a chip's own px times min(dst / src).

    Returns
    -------
    Masks
        float32, on the model's device.

    Raises
    ------
    DataError
        The features lack a level that the decoder needs, or are of another shape.
    """
    needed = {output.name: output.shape for output in entry.outputs}
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise DataError(
            f"these features cannot be prompted: the mask decoder of {entry.name} needs levels "
            "that were left out",
            expected=", ".join(needed),
            got=", ".join(tensors),
            hint="Encode again with --levels all; the embedding alone serves similarity and PCA",
        )
    for name, shape in needed.items():
        if tuple(tensors[name].shape) != shape:
            raise DataError(
                f"the feature {name} is not of {entry.name}",
                expected=str(shape),
                got=str(tuple(tensors[name].shape)),
            )
    device = next(model.parameters()).device
    batch = {name: tensors[name][None].to(device, torch.float32) for name in needed}
    return cast("_Family", importlib.import_module(FAMILIES[entry.family])).decode(
        model, batch, prompts
    )
