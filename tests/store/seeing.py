"""A decoder that sees exactly: everything of a prompt's colour that hangs together with it.

It reads the fake model's finest level, the mean of 4 x 4 px of the scene, so a scene painted in
such squares has one right answer for every prompt, within a chip and beyond it.
"""

from __future__ import annotations

import numpy as np
import torch

from geosam_stac.encoders.prompts import Masks, Prompts
from geosam_stac.store.chip import StoredChip
from geosam_stac.store.decoder import Decoder
from geosam_stac.store.pixels import joined
from tests.fakes import ENTRY

CELL_PX = 4


class SeeingDecoder(Decoder):
    """In place of `store.decoder.Decoder`; `asked` has each chip and its prompts."""

    def __init__(self) -> None:
        super().__init__(ENTRY, None)
        self.asked: list[tuple[str, Prompts]] = []

    def predict(self, chip: StoredChip, prompts: Prompts) -> Masks:
        self.asked.append((chip.id, prompts))
        colours = chip.tensors["high_res_feats_0"]
        cells = colours.shape[1]
        step = chip.input_px / cells
        start = np.zeros((cells, cells), dtype=bool)
        for (x, y), label in zip(prompts.points, prompts.labels, strict=True):
            if label == 1:
                start[min(int(y / step), cells - 1), min(int(x / step), cells - 1)] = True
        if prompts.box is not None and not start.any():
            left, top, right, bottom = prompts.box
            start[int((top + bottom) / 2 / step), int((left + right) / 2 / step)] = True
        if not start.any():
            assert prompts.mask is not None
            start = prompts.mask.numpy() > 0
        row, col = np.argwhere(start)[0]
        same = np.abs(colours - colours[:, row : row + 1, col : col + 1]).max(axis=0) < 1
        mask = joined(same, start)
        full = np.kron(mask, np.ones((int(step), int(step))))[: chip.geobox.shape[0]]
        logits = torch.from_numpy(np.where(full[:, : chip.geobox.shape[1]], 5.0, -5.0)).float()
        count = 3 if prompts.multimask else 1
        scores = torch.tensor([0.9, 0.8, 0.7][:count])
        return Masks(logits=logits.expand(count, -1, -1), scores=scores)


def painted(height: int, width: int, *boxes: tuple[int, int, int, int, int]) -> np.ndarray:
    """(3, H, W) uint8 of 10, with boxes (top, left, bottom, right, value) in px painted upon it."""
    data = np.full((3, height, width), 10, dtype=np.uint8)
    for top, left, bottom, right, value in boxes:
        data[:, top:bottom, left:right] = value
    return data
