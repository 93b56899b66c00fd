"""Files that are right, wrong, damaged and malicious, for real models."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from geosam_stac.encoders import load_encoder, load_model
from geosam_stac.encoders.base import TorchEncoder
from geosam_stac.encoders.checkpoints import Weights, resolve
from geosam_stac.encoders.registry import MODELS, ModelEntry, find_model
from geosam_stac.encoders.weights import identify, weights_sha256
from geosam_stac.errors import ConfigurationError

SAM = find_model("sam-vit-base")
TINY = find_model("sam2.1-hiera-tiny")


def untrained(entry: ModelEntry, seed: int = 0) -> nn.Module:
    weights = resolve(entry, f"untrained:{seed}", cache_dir=Path("unused"))
    return load_model(entry, weights, "cpu")


def of_file(entry: ModelEntry, path: Path) -> Weights:
    return resolve(entry, str(path), cache_dir=path.parent)


@pytest.fixture(scope="module")
def tiny_state() -> dict[str, torch.Tensor]:
    return untrained(TINY).state_dict()


@pytest.fixture(scope="module")
def tiny_file(
    tiny_state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.pt"
    torch.save({"model": tiny_state}, path)
    return path


@pytest.fixture(scope="module")
def sam_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sam") / "sam.pth"
    torch.save(untrained(SAM).state_dict(), path)
    return path


def refusal(entry: ModelEntry, path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_model(entry, of_file(entry, path), "cpu")
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert len(text) < 500
    return text


def test_file_fills_the_model_strictly(
    tiny_state: dict[str, torch.Tensor], tiny_file: Path
) -> None:
    model = load_model(TINY, of_file(TINY, tiny_file), "cpu")
    assert not model.training
    loaded = model.state_dict()
    assert loaded.keys() == tiny_state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tiny_state.items())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_legacy_format_loads(tiny_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save({"model": tiny_state}, path, _use_new_zipfile_serialization=False)
    loaded = load_model(TINY, of_file(TINY, path), "cpu").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tiny_state.items())


def test_spec_of_a_file(tiny_file: Path) -> None:
    encoder = load_encoder(
        TINY, of_file(TINY, tiny_file), device="cpu", precision="fp32", feature_dtype="float16"
    )
    assert encoder.spec.weights_sha256 == hashlib.sha256(tiny_file.read_bytes()).hexdigest()
    assert encoder.spec.weights == "tiny.pt"
    assert encoder.spec.checkpoint_name == "sam2.1_t.pt"
    assert (encoder.device, encoder.precision, encoder.feature_dtype) == ("cpu", "fp32", "float16")


def test_untrained_is_the_same_on_every_run() -> None:
    before = torch.random.get_rng_state()
    first, again, other = untrained(TINY, 3), untrained(TINY, 3), untrained(TINY, 4)
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator was touched"
    weights = resolve(TINY, "untrained:3", cache_dir=Path("unused"))
    digests = [weights_sha256(weights, model) for model in (first, again, other)]
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == 64


def test_untrained_from_threads_and_after_other_hydra_users() -> None:
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    weights = resolve(TINY, "untrained:3", cache_dir=Path("unused"))
    expected = weights_sha256(weights, untrained(TINY, 3))
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("hydra.conf", version_base="1.3"):
            digests: list[str] = []
            threads = [
                threading.Thread(
                    target=lambda: digests.append(weights_sha256(weights, untrained(TINY, 3)))
                )
                for _ in range(3)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        GlobalHydra.instance().clear()
        initialize_config_module("sam2", version_base="1.2")
    assert digests == [expected] * 3


def test_sam_file_for_sam2_and_reverse(sam_file: Path, tiny_file: Path) -> None:
    text = refusal(TINY, sam_file)
    assert "what looks like a sam-vit-base checkpoint" in text
    assert "--model sam-vit-base" in text
    assert "what looks like a sam2.1-hiera-tiny checkpoint" in refusal(SAM, tiny_file)


def test_other_size_and_version(tiny_file: Path, sam_file: Path) -> None:
    for name in ("sam2-hiera-tiny", "sam2.1-hiera-small"):
        assert "looks like a sam2.1-hiera-tiny" in refusal(find_model(name), tiny_file)
    assert "looks like a sam-vit-base" in refusal(find_model("sam-vit-large"), sam_file)


def test_sam2_and_sam_files_for_sam3(tiny_file: Path, sam_file: Path, tmp_path: Path) -> None:
    """By what lies in the file, before sam3's names are looked for, and before it is built."""
    entry = find_model("sam3")
    assert "looks like a sam2.1-hiera-tiny" in refusal(entry, tiny_file)
    text = refusal(entry, sam_file)
    assert "looks like a sam-vit-base" in text
    assert "--model sam-vit-base, or a checkpoint of sam3" in text
    path = tmp_path / "scalar.pt"
    torch.save({"image_encoder.trunk.patch_embed.proj.weight": torch.tensor(1.0)}, path)
    assert "no model that is known here" in refusal(TINY, path)


def test_state_that_lacks_tensors(tiny_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    state = dict(tiny_state)
    del state["no_mem_embed"]
    state["extra"] = torch.zeros(1)
    state["no_mem_pos_enc"] = torch.zeros(2)
    path = tmp_path / "lacking.pt"
    torch.save({"model": state}, path)
    text = refusal(TINY, path)
    assert "1 tensors missing (as no_mem_embed)" in text
    assert "1 tensors unknown (as extra)" in text
    assert "1 tensors of another shape (as no_mem_pos_enc)" in text


@pytest.mark.parametrize("keep", [0.5, 0.999, 0.0])
def test_truncated_file(tiny_file: Path, tmp_path: Path, keep: float) -> None:
    path = tmp_path / "short.pt"
    content = tiny_file.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    text = refusal(TINY, path)
    assert "cut short" in text
    assert str(TINY.size_bytes) in text


def test_damaged_zip_whose_directory_is_whole(tiny_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.pt"
    content = bytearray(tiny_file.read_bytes())
    content[100:2000] = bytes(1900)
    path.write_bytes(content)
    assert "damaged" in refusal(TINY, path)


@pytest.mark.parametrize(
    "content", [b"<html>sign in</html>", b"\x80\x02}q\x00.", os.urandom(5000), b"PK\x03\x04"]
)
def test_no_checkpoint_at_all(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "page.pt"
    path.write_bytes(content)
    refusal(SAM, path)


class Canary:
    """Runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("entry", [SAM, TINY])
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, entry: ModelEntry, zipped: bool) -> None:
    path, canary = tmp_path / "evil.pt", tmp_path / "canary"
    torch.save(
        {"model": {"a": torch.zeros(1)}, "b": Canary(canary)},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    assert "holds code" in refusal(entry, path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "content", [torch.zeros(3), {"model": {"a": 1}}, {"a": torch.zeros(1)}, []]
)
def test_file_of_something_else(content: object, tmp_path: Path) -> None:
    path = tmp_path / "else.pt"
    torch.save(content, path)
    for entry in (SAM, TINY):
        refusal(entry, path)


def test_old_torch_is_refused(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1+cpu"))
    with pytest.raises(ConfigurationError, match=r"torch 2\.9\.1\+cpu") as caught:
        load_model(TINY, of_file(TINY, tiny_file), "cpu")
    assert caught.value.expected == "torch 2.10 or newer"


def test_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "segment_anything", None)
    with pytest.raises(ConfigurationError, match="pip install 'segment-anything'"):
        untrained(SAM)


def test_safetensors_fill_the_model(tiny_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(tiny_state, path)
    loaded = load_model(TINY, of_file(TINY, path), "cpu").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tiny_state.items())
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert "cut short" in refusal(TINY, path)
    path.write_bytes(content[:8] + b"{{" + content[10:])
    assert "damaged" in refusal(TINY, path)


@pytest.mark.parametrize("prefix", ["detector.backbone.vision_backbone.trunk.", "x"])
def test_sam3_file_for_sam2(prefix: str, tmp_path: Path) -> None:
    state = {f"{prefix}blocks.{i}.norm1.weight": torch.ones(1) for i in range(32)}
    state[f"{prefix}patch_embed.proj.weight"] = torch.ones(1024, 1, 1, 1)
    path = tmp_path / "sam3.pt"
    torch.save(state, path)
    text = refusal(TINY, path)
    assert ("looks like a sam3 checkpoint" in text) == (prefix != "x")


@pytest.mark.parametrize(
    "entry", [entry for entry in MODELS if entry.family != "sam3"], ids=lambda entry: entry.name
)
def test_every_model_is_what_the_registry_says(entry: ModelEntry) -> None:
    """Size of the published file, output shapes and work, without computing anything."""
    encoder = load_encoder(
        entry,
        resolve(entry, "untrained", cache_dir=Path("unused")),
        device="cpu",
        precision="fp32",
        feature_dtype="float16",
    )
    assert isinstance(encoder, TorchEncoder)
    state = encoder.model.state_dict()
    tensor_bytes = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    # A file is its tensors plus 250 to 340 bytes each: config, key, URL and size belong together.
    assert 200 < (entry.size_bytes - tensor_bytes) / len(state) < 400
    assert identify(state) is entry
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        out = encoder._forward(torch.empty(1, 3, entry.input_px, entry.input_px))
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in out.items()}
    assert shapes == {output.name: output.shape for output in entry.outputs}
    assert all(
        h * output.stride_px == entry.input_px for output in entry.outputs for h in output.shape[1:]
    )
    # Upstream's own way counts: ours computes the same with fewer products, or more and faster.
    upstream = encoder.model.to("meta")
    upstream = upstream.image_encoder if entry.family == "sam" else upstream.forward_image
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        upstream(torch.empty(1, 3, entry.input_px, entry.input_px, device="meta"))
    assert counter.get_total_flops() / 1e12 == pytest.approx(entry.tflop_per_chip, rel=2e-3)
