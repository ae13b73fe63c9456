"""A part of a model that was trained alone is put back into it: by inference, and by a merged model folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dsctl_core.checkpoint.trained_part import TrainedPart
from dsctl_core.commands.infer import infer
from dsctl_core.commands.merge_lora import merge
from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError
from dsctl_core.families.resolve import resolve_model
from dsctl_core.files.safetensors import safetensors_header
from dsctl_core.options import InferOptions, TrainOptions
from dsctl_core.options.lora_tools import MergeLoraOptions
from tests.tiny_models import write_tiny_model

MODULES = ("dit.transformer_blocks.1", "dit.img_in", "dit.proj_out", "vae.post_quant_conv")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A tiny model, and the files of a training of parts of its transformer and of its VAE."""
    folder = tmp_path_factory.mktemp("parts")
    model = write_tiny_model("qwen-image", folder / "model")
    (folder / "data").mkdir()
    Image.effect_noise((32, 32), 60).convert("RGB").save(folder / "data" / "a.png")
    (folder / "data" / "a.txt").write_text("noise")
    settings: dict[str, Any] = {"learning_rate": 0.01, "max_steps": 2, "device": "cpu", "trainable_models": MODULES}
    result = train(
        TrainOptions(model=str(model), dataset_base_path=folder / "data", output_path=folder / "out", **settings)
    )
    dit, vae = result.checkpoints
    # The loss does not go through the decoder, so its part is changed here.
    about, tensors = safetensors_header(vae)[0]["__metadata__"], load_file(vae)
    save_file({name: 1.5 * tensor for name, tensor in tensors.items()}, vae, about)
    return model, [dit, vae]


def pixels(model: Path, name: str, **more: Any) -> np.ndarray:
    small = {"height": 32, "width": 32, "num_inference_steps": 1, "device": "cpu", "prompt": "a"}
    infer(InferOptions(**{"model": str(model), **small, "output": name, **more}))
    with Image.open(name) as picture:
        return np.array(picture)


def test_inference_with_the_parts_is_that_of_the_merged_model(made: tuple[Path, list[Path]], tmp_path: Path):
    model, parts = made
    assert [path.name for path in parts] == ["step-2.dit.safetensors", "step-2.vae.safetensors"]
    written = merge(MergeLoraOptions(model=str(model), trained_part=parts, output=tmp_path / "merged"))
    assert written.facts["trained_parts"] == {"dit": len(load_file(parts[0])), "vae": len(load_file(parts[1]))}
    base, whole = (load_file(folder / WEIGHTS) for folder in (model, tmp_path / "merged"))
    trained = load_file(parts[0])
    assert base.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, trained.get(name, base[name]))
        assert tensor.dtype == base[name].dtype
    assert sum(not torch.equal(whole[name], base[name]) for name in whole) >= 10
    assert any(tensor.ndim == 1 for tensor in trained.values())
    before = pixels(model, "before.png")
    together = pixels(model, "together.png", trained_part=parts)
    assert np.array_equal(together, pixels(tmp_path / "merged", "merged.png"))
    one = pixels(model, "one.png", trained_part=parts[:1])
    assert not np.array_equal(before, one)
    assert not np.array_equal(one, together)


def test_names_with_a_prefix_are_those_of_the_component(made: tuple[Path, list[Path]], tmp_path: Path):
    model, parts = made
    about = safetensors_header(parts[0])[0]["__metadata__"]
    for prefix in ("pipe.dit.", "dit."):
        named = {f"{prefix}{name}": tensor for name, tensor in load_file(parts[0]).items()}
        save_file(named, tmp_path / "named.safetensors", about)
        family = resolve_model(str(model)).family
        found = TrainedPart.at(tmp_path / "named.safetensors", family, ("dit",))
        assert found.shapes == TrainedPart.at(parts[0], family, ("dit",)).shapes


def test_a_file_that_is_no_part_of_the_model_is_refused_before_it_is_loaded(
    made: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, parts = made
    tensors, about = load_file(parts[0]), dict(safetensors_header(parts[0])[0]["__metadata__"])
    cases = {
        "lora": (tensors, {**about, "kind": "lora", "format_of_keys": "diffusers"}, "is a LoRA, not a trained part"),
        "foreign": (tensors, {}, "does not say of which component"),
        "family": (tensors, {**about, "family": "flux1"}, "is a trained part of flux1, and this model is qwen-image"),
        "component": (tensors, {**about, "component": "dit_2"}, "part of the dit_2, which this model does not have"),
        "name": ({"other.weight": torch.ones(2)}, about, "has other.weight, which the dit of this model does not have"),
        "shape": ({"proj_out.bias": torch.ones(3)}, about, r"proj_out.bias is \(3,\), but \(64,\) in the dit"),
    }
    for name, (weights, metadata, said) in cases.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(weights, path, metadata)
        with pytest.raises(DsctlError, match=said):
            merge(MergeLoraOptions(model=str(model), trained_part=[path], output=tmp_path / "out"))
        if name not in ("name", "shape"):
            with monkeypatch.context() as patch:
                patch.setattr("dsctl_core.commands.infer.load", lambda *_: pytest.fail("the model was loaded"))
                with pytest.raises(DsctlError, match=said):
                    pixels(model, "a.png", trained_part=[path])
        else:
            with pytest.raises(DsctlError, match=said):
                pixels(model, "a.png", trained_part=[path])
    shutil.copy(parts[0], tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(parts[0].read_bytes()[:-10])
    with pytest.raises(DsctlError, match="cut.safetensors"):
        pixels(model, "a.png", trained_part=[tmp_path / "cut.safetensors"])
    assert not (tmp_path / "out").exists()
    assert not Path("a.png").exists()
