"""SAM 3 as Geo-SAM's engine has it: weights under Meta's names, features, masks. By hand only.

Runs where geosam 0.1.3 and ultralytics (AGPL-3.0) are installed, that is in `.venv-compat` with
timm added, never in the project's environment. Two steps, with our encoder between them:

    .venv-compat/bin/python tests/parity/sam3_geosam.py make DIR
    SAM3_COMPAT=DIR .venv/bin/pytest --run-slow tests/parity/test_sam3.py -k geosam
    .venv-compat/bin/python tests/parity/sam3_geosam.py query DIR

`make` writes sam3.pt (random weights under Meta's names), image.npy, geosam.pt (what geosam keeps
of that image) and names.json; the test compares ours with it and writes ours.pt; `query` opens
and prompts both with geosam, and writes the masks' IoU to masks.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ.update({"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"})

import numpy as np
import torch
from geosam import create_model_spec
from geosam.models import EncodedImageFeatures, ModelSpec, build_model_adapter
from ultralytics.models.sam import build_sam3

SIZE = 1008
BOXES = [[120, 150, 420, 500], [600, 80, 900, 300], [300, 600, 800, 950]]
POINTS = [[250, 300], [750, 200], [500, 800]]


def meta_name(name: str) -> str:
    """Ultralytics' name of a tensor -> the name in Meta's sam3.pt, which ultralytics maps from."""
    vision = "image_encoder.vision_backbone."
    if name.startswith(vision):
        return "detector.backbone.vision_backbone." + name.removeprefix(vision)
    for ours, theirs in (
        ("memory_attention.", "transformer.encoder."),
        ("memory_encoder.", "maskmem_backbone."),
    ):
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
    return f"tracker.{name}"


def make(folder: Path) -> None:
    """Random weights, an image, and what geosam keeps of it."""
    load = build_sam3._load_checkpoint
    build_sam3._load_checkpoint = lambda model, *args, **kwargs: model
    torch.manual_seed(1)
    model = build_sam3.build_interactive_sam3(None)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
        model.no_mem_embed.normal_()
    build_sam3._load_checkpoint = load
    state = {meta_name(name): tensor for name, tensor in model.state_dict().items()}
    torch.save(state, folder / "sam3.pt")
    names = {name: list(tensor.shape) for name, tensor in state.items()}
    (folder / "names.json").write_text(json.dumps(names, indent=0))
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del model, state

    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    image = np.stack([x / 8, y / 8, 96 + 64 * np.sin((x + y) / 50)], axis=-1)
    for left, top, right, bottom in BOXES:
        image[top:bottom, left:right] = rng.integers(0, 256, 3)
    image = (image + rng.normal(0, 10, image.shape)).clip(0, 255).astype(np.uint8)
    np.save(folder / "image.npy", image)  # (rows, columns, 3) RGB

    spec = ModelSpec(
        model_type="sam3", checkpoint_path=folder / "sam3.pt", device="cpu", imgsz=SIZE
    )
    adapter = build_model_adapter(spec)
    loaded = adapter.model.model.state_dict()
    wrong = [name for name, tensor in expected.items() if not torch.equal(loaded[name], tensor)]
    assert not wrong, f"ultralytics does not load {len(wrong)} tensors, as {wrong[:3]}"
    started = time.monotonic()
    encoded = adapter.encode_image(np.ascontiguousarray(image[..., ::-1]))  # it expects BGR
    print(f"geosam encodes in {time.monotonic() - started:.1f} s: {encoded.describe()}")
    encoded.save(folder / "geosam.pt")


def query(folder: Path) -> None:
    """Prompt geosam with our file and with its own; IoU of the masks."""
    # As the plugin does: a registered id, and that spec's image size of 1024.
    adapter = build_model_adapter(create_model_spec("sam3", folder / "sam3.pt", device="cpu"))
    ours = EncodedImageFeatures.load(folder / "ours.pt")
    theirs = EncodedImageFeatures.load(folder / "geosam.pt")
    print(f"ours:   {ours.describe()}\ntheirs: {theirs.describe()}")
    ious, areas = [], []
    for prompt in [{"bboxes": [box]} for box in BOXES] + [
        {"points": [point], "labels": [1]} for point in POINTS
    ]:
        a, b = (adapter.predict_features(each, **prompt).masks for each in (ours, theirs))
        assert a.shape == b.shape == (1, SIZE, SIZE)
        ious.append(float((a & b).sum() / max(1, int((a | b).sum()))))
        areas.append(float(a.float().mean()))
    result = {"iou": ious, "area_fraction": areas}
    print(result)
    (folder / "masks.json").write_text(json.dumps(result))


if __name__ == "__main__":
    {"make": make, "query": query}[sys.argv[1]](Path(sys.argv[2]))
