"""Reading checkpoint files as data, telling what they are, and filling a model with them.

A checkpoint comes from a stranger: it is read as weights only, with a torch whose `weights_only`
holds, and whatever is wrong with it becomes one sentence that names the file.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeGuard

import torch
from torch import nn
from torch.torch_version import TorchVersion

from geosam_stac.encoders.checkpoints import Weights, file_sha256
from geosam_stac.encoders.registry import MODELS, ModelEntry
from geosam_stac.errors import ConfigurationError

# CVE-2025-32434 (fixed in 2.6) and CVE-2026-24747 (fixed in 2.10) run code in spite of
# weights_only=True.
_SAFE_TORCH = "2.10"

# fork_rng and manual_seed work on the generator of the whole process.
_BUILD_LOCK = threading.Lock()

StateDict = Mapping[str, torch.Tensor]


def load_weights(
    weights: Weights,
    *,
    build: Callable[[], nn.Module],
    unwrap: Callable[[object], object],
    convert: Callable[[StateDict], StateDict] | None = None,
) -> nn.Module:
    """Build a model on the CPU, in eval mode, and fill it, strictly.

    The global random generator is left as it was.

    Parameters
    ----------
    weights
        A file, or the seed of random weights (the same on every run).
    build
        Builds the upstream model.
    unwrap
        Finds the state dict in what the family's files hold.
    convert
        Gives its tensors the names, and the shapes, that the model has.

    Raises
    ------
    ConfigurationError
        The file cannot be read, holds something else than tensors, or is of another model.
    """
    # Read first: a wrong file is told before a large model is built.
    state = None if weights.path is None else read_state(weights, unwrap)
    if state is not None:
        # As it lies in the file: what tells models apart may have no place in the one asked for.
        if identify(state) not in (None, weights.entry):
            raise _wrong_model(weights, state)
        if convert is not None:
            state = convert(state)
    with _BUILD_LOCK, torch.random.fork_rng(devices=[]):
        if weights.seed is not None:
            torch.manual_seed(weights.seed)
        model = build()
    if state is not None:
        _fill(model, state, weights)
    return model.eval().requires_grad_(False)


def weights_sha256(weights: Weights, model: nn.Module) -> str:
    """The identity of weights: a file's sha256; for random ones that of the state dict.

    The latter is over name, dtype, shape and bytes of each tensor, sorted by name.
    """
    if weights.path is not None:
        return weights.sha256 or file_sha256(weights.path)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def read_state(weights: Weights, unwrap: Callable[[object], object]) -> StateDict:
    """The state dict in a checkpoint file, memory-mapped where the file's format allows.

    Raises
    ------
    ConfigurationError
        Torch is too old to read strangers' files safely; the file cannot be read, is cut short,
        holds code, or holds no state dict.
    """
    _require_safe_torch()
    path = weights.path
    assert path is not None
    # By its name, too: so does torch.load, in newer versions.
    if path.is_file() and (path.suffix == ".safetensors" or _is_safetensors(path)):
        return _read_safetensors(weights, path)
    zipped = zipfile.is_zipfile(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except FileNotFoundError as error:
        raise _refused(weights, "there is no such checkpoint file") from error
    except pickle.UnpicklingError as error:
        # torch says "Unsupported global" (or operand, or class) for what is not plain tensors.
        if "nsupported" in str(error):
            raise _refused(
                weights,
                "the checkpoint file holds code or objects other than tensors, and was not loaded",
            ) from error
        raise _unreadable(weights, path) from error
    except (
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        EOFError,
        OSError,
        AssertionError,
    ) as error:
        raise _unreadable(weights, path) from error
    state = unwrap(content)
    if _is_state(state):
        return state
    if _is_state(content):
        # Tensors, but not packed as this family packs them: say whose they are.
        raise _wrong_model(weights, content)
    inner = content.get("model") if isinstance(content, dict) else None
    if _is_state(inner):
        raise _wrong_model(weights, inner)
    raise _refused(weights, "the checkpoint file holds no state dict of this kind of model")


# Where families keep their image encoders: prefix, its patch embedding, its blocks. SAM 3 has
# three: Meta's file, Hugging Face's file, and the model in transformers.
_HUB_PATCH = "embeddings.patch_embeddings.projection"
_TRUNKS = (
    ("sam2", "image_encoder.trunk.", "patch_embed.proj", "blocks"),
    ("sam", "image_encoder.", "patch_embed.proj", "blocks"),
    ("sam3", "detector.backbone.vision_backbone.trunk.", "patch_embed.proj", "blocks"),
    ("sam3", "detector_model.vision_encoder.backbone.", _HUB_PATCH, "layers"),
    ("sam3", "vision_encoder.backbone.", _HUB_PATCH, "layers"),
)


def identify(state: StateDict) -> ModelEntry | None:
    """The model that a state dict is of, by its first stage, its blocks and its extra keys."""
    for family, trunk, patch_name, blocks in _TRUNKS:
        patch = state.get(f"{trunk}{patch_name}.weight")
        if patch is None or patch.ndim == 0:
            continue
        block = re.compile(re.escape(f"{trunk}{blocks}.") + r"(\d+)\.")
        depth = len({match[1] for key in state if (match := block.match(key))})
        version = {"sam": "1", "sam3": "3"}.get(family)
        if version is None:
            # New in SAM 2.1: sam2/modeling/sam2_base.py, no_obj_embed_spatial=True in its configs.
            version = "2.1" if "no_obj_embed_spatial" in state else "2.0"
        return next(
            (
                entry
                for entry in MODELS
                if (entry.family, entry.version, entry.depth, entry.embed_dim)
                == (family, version, depth, patch.shape[0])
            ),
            None,
        )
    return None


def _is_safetensors(path: Path) -> bool:
    """By the file's beginning: the length of a JSON object, and its brace. No pickle has that."""
    with path.open("rb") as stream:
        start = stream.read(9)
    length = int.from_bytes(start[:8], "little")
    return len(start) == 9 and start[8:] == b"{" and length <= path.stat().st_size


def _read_safetensors(weights: Weights, path: Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: StateDict = load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _unreadable(weights, path) from error
    return state


def _fill(model: nn.Module, state: StateDict, weights: Weights) -> None:
    own = model.state_dict()
    fits = own.keys() == state.keys() and all(
        own[name].shape == tensor.shape for name, tensor in state.items()
    )
    if not fits:
        raise _wrong_model(weights, state, own)
    model.load_state_dict(state, strict=True)


def _wrong_model(
    weights: Weights, state: StateDict, own: StateDict | None = None
) -> ConfigurationError:
    found = identify(state)
    name = weights.entry.name
    if found is not None and found is not weights.entry:
        return ConfigurationError(
            "the checkpoint file is of another model",
            href=str(weights.path),
            expected=name,
            got=f"what looks like a {found.name} checkpoint",
            hint=f"Give --model {found.name}, or a checkpoint of {name}",
        )
    got = "tensors of no model that is known here"
    if found is not None and own is not None:
        missing = sorted(own.keys() - state.keys())
        extra = sorted(state.keys() - own.keys())
        shapes = sorted(
            key for key in own.keys() & state.keys() if own[key].shape != state[key].shape
        )
        parts = (("missing", missing), ("unknown", extra), ("of another shape", shapes))
        got = ", ".join(
            f"{len(keys)} tensors {what} (as {keys[0]})" for what, keys in parts if keys
        )
    return ConfigurationError(
        "the checkpoint file does not fit the model",
        href=str(weights.path),
        expected=name,
        got=got,
        hint=f"Give the file that {weights.entry.url} offers, or one fine-tuned from it",
    )


def _unreadable(weights: Weights, path: Path) -> ConfigurationError:
    size = path.stat().st_size if path.is_file() else 0
    return ConfigurationError(
        "the checkpoint file is cut short, damaged, or no torch checkpoint",
        href=str(path),
        expected=f"a {weights.entry.name} checkpoint (upstream: {weights.entry.size_bytes} bytes)",
        got=f"{size} bytes",
        hint="Fetch it again; `geosam-stac models verify FILE` compares its sha256",
    )


def _refused(weights: Weights, message: str) -> ConfigurationError:
    return ConfigurationError(
        message,
        href=str(weights.path),
        expected=f"a {weights.entry.name} checkpoint",
        hint=f"Use the upstream file, {weights.entry.url}, or save the state dict alone",
    )


def _require_safe_torch() -> None:
    if torch.__version__ < TorchVersion(_SAFE_TORCH):
        raise ConfigurationError(
            "this torch can be made to run code from a checkpoint file",
            expected="torch 2.10 or newer",
            got=f"torch {torch.__version__}",
            hint="Install a newer torch (CVE-2025-32434, CVE-2026-24747)",
        )


def _is_state(content: object) -> TypeGuard[StateDict]:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(name, str) and torch.is_tensor(t) for name, t in content.items())
    )
