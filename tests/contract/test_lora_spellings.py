"""The LoRA files of other trainers: each spelling gives the same weights, and what cannot be read is named."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.errors import DsctlError
from dsctl_core.families import load_family, pipeline_class
from dsctl_core.lora import LoraLayer, fuse_lora, load_lora, read_lora
from dsctl_core.lora.original import to_original
from tests.contract import loras
from tests.tiny_models import BUILDERS, write_tiny_model, write_tiny_wan

NAMES = sorted(BUILDERS)
Tensors = dict[str, Tensor]


def flat(name: str) -> str:
    return name.replace(".", "_")


def folded(prefix: str, down: str, up: str, undot: bool = False) -> Callable[[dict[str, LoraLayer]], Tensors]:
    """Write layers without alpha, with the scale in the up matrix; `down` and `up` are what follows a layer's name."""

    def write(layers: dict[str, LoraLayer]) -> Tensors:
        found = {}
        for name, layer in layers.items():
            own = prefix + (flat(name) if undot else name)
            found |= {own + down: layer.down, own + up: layer.up * layer.scale}
        return found

    return write


def with_alpha(
    prefix: str, down: str, up: str, undot: bool = False, make: Callable[[float], Tensor] = torch.tensor
) -> Callable[[dict[str, LoraLayer]], Tensors]:
    """Write layers each with an alpha, as `make` makes it of the number."""

    def write(layers: dict[str, LoraLayer]) -> Tensors:
        found = {}
        for name, layer in layers.items():
            own = prefix + (flat(name) if undot else name)
            found |= {own + down: layer.down, own + up: layer.up, f"{own}.alpha": make(layer.scale * layer.rank)}
        return found

    return write


AB = (".lora_A.weight", ".lora_B.weight")
DOWN_UP = (".lora_down.weight", ".lora_up.weight")
TRAINERS: dict[str, Callable[[dict[str, LoraLayer]], Tensors]] = {
    "ai-toolkit": folded("diffusion_model.", *AB),
    "ai-toolkit, older": folded("transformer.", *AB),
    "diffusion-pipe": folded("diffusion_model.", *AB),
    "SimpleTuner": with_alpha("transformer.", *AB),
    "kohya and musubi": with_alpha("lora_unet_", *DOWN_UP, undot=True),
    "musubi, with an alpha of one element": with_alpha("lora_unet_", *DOWN_UP, True, lambda n: torch.tensor([n])),
    "OneTrainer": with_alpha("lora_transformer_", *DOWN_UP, undot=True),
    "OneTrainer, with dots": with_alpha("transformer.", *DOWN_UP),
    "LyCORIS, plain": with_alpha("lycoris_", *DOWN_UP, undot=True),
    "DiffSynth": folded("", ".lora_A.default.weight", ".lora_B.default.weight"),
    "DiffSynth, without the adapter": folded("", *AB),
    "DiffSynth, with the pipeline": folded("pipe.dit.", ".lora_A.default.weight", ".lora_B.default.weight"),
    "peft": folded("base_model.model.", *AB),
    "peft, with its adapter": folded("base_model.model.", ".lora_A.my style.weight", ".lora_B.my style.weight"),
    "peft inside a component": folded("transformer.base_model.model.", *AB),
    "diffusers": folded("transformer.", *AB),
    "diffusers, with a numbered adapter": folded(
        "transformer.", ".lora_A.default_0.weight", ".lora_B.default_0.weight"
    ),
    "diffusers, older": folded("transformer.", ".lora.down.weight", ".lora.up.weight"),
    "diffusers, unet": folded("unet.", ".lora.down.weight", ".lora.up.weight"),
    "ComfyUI": with_alpha("diffusion_model.", *DOWN_UP),
    "ComfyUI, whole model": with_alpha("model.diffusion_model.", *DOWN_UP),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_tiny_model(name, root / name) for name in NAMES}


@pytest.fixture(scope="module")
def made(folders: dict[str, Path]) -> dict[str, tuple[dict[str, LoraLayer], Tensors]]:
    found = {}
    for name, folder in folders.items():
        dit = loras.fresh(name, folder).dit
        layers = loras.made_layers(name, dit)
        found[name] = (layers, loras.updated_weights(dit, layers))
    return found


def saved(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path, metadata)
    return path


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("name", NAMES)
def test_every_spelling_gives_the_weights_with_the_updates(
    folders: Any, made: Any, tmp_path: Path, name: str, trainer: str
) -> None:
    layers, expected = made[name]
    path = saved(tmp_path / "l.safetensors", TRAINERS[trainer](layers))
    loras.assert_same(loras.fused_weights(name, folders[name], path), expected)


WITH_ORIGINAL = [name for name in NAMES if load_family(name).original_names is not None]


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("name", WITH_ORIGINAL)
def test_every_spelling_of_the_original_names_gives_the_weights_with_the_updates(
    folders: Any, made: Any, tmp_path: Path, name: str, trainer: str
) -> None:
    layers, expected = made[name]
    original = load_family(name).original_names
    assert original is not None
    path = saved(tmp_path / "l.safetensors", TRAINERS[trainer](to_original(layers, original, "kohya")))
    loras.assert_same(loras.fused_weights(name, folders[name], path), expected)


SECOND = {
    "dsctl": lambda name: f"dit_2.{name}",
    "diffusers": lambda name: f"transformer_2.{name}",
    "peft inside a component": lambda name: f"transformer_2.base_model.model.{name}",
    "peft around a component": lambda name: f"base_model.model.transformer_2.{name}",
    "DiffSynth, with the pipeline": lambda name: f"pipe.dit_2.{name}",
}


@pytest.mark.parametrize("spelling", SECOND)
def test_one_file_can_hold_the_layers_of_two_denoisers(made: Any, tmp_path: Path, spelling: str) -> None:
    layers, _ = made["wan"]
    family = load_family("wan")
    folder = write_tiny_wan(tmp_path / "two", kind="t2v-a14b")
    both = {"dit": layers, "dit_2": {name: replace(each, scale=2 * each.scale) for name, each in layers.items()}}
    tensors = TRAINERS["diffusers"](both["dit"])
    for name, layer in both["dit_2"].items():
        own = SECOND[spelling](name)
        tensors |= {f"{own}.lora_A.weight": layer.down, f"{own}.lora_B.weight": layer.up * layer.scale}
    path = saved(tmp_path / "l.safetensors", tensors)
    assert len(read_lora(path, ("dit", "dit_2")).components["dit_2"]) == len(layers)
    pipe = pipeline_class(family).from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(path=folder)], only=["dit", "dit_2"]
    )
    expected = {name: loras.updated_weights(pipe.component(name), each) for name, each in both.items()}
    fuse_lora(pipe, path, None)
    for name, weights in expected.items():
        loras.assert_same(dict(pipe.component(name).state_dict()), weights)


@pytest.mark.parametrize("name", NAMES)
def test_the_alpha_in_the_header_of_diffusers_counts(folders: Any, made: Any, tmp_path: Path, name: str) -> None:
    layers, expected = made[name]
    tensors = {
        f"transformer.{layer}.{part}.weight": tensor
        for layer, each in layers.items()
        for part, tensor in (("lora_A", each.down), ("lora_B", each.up))
    }
    alphas = {layer: each.scale * each.rank for layer, each in layers.items()}
    config = {"transformer.r": 2, "transformer.lora_alpha": 2, "transformer.alpha_pattern": alphas}
    path = saved(tmp_path / "l.safetensors", tensors, {"lora_adapter_metadata": json.dumps(config)})
    loras.assert_same(loras.fused_weights(name, folders[name], path), expected)


TEXT = {
    "kohya": "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
    "kohya, one encoder": "lora_te_layers_0_self_attn_q_proj.alpha",
    "diffusers": "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight",
    "OneTrainer": "bundle_emb.trigger.t5",
}


@pytest.mark.parametrize("who", TEXT)
def test_parts_for_a_text_encoder_of_another_tool_are_named_as_not_used(
    folders: Any, made: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, who: str
) -> None:
    layers, expected = made["qwen-image"]
    style = "kohya and musubi" if who.startswith("kohya") else "diffusers"
    part = {TEXT[who]: torch.tensor(2.0) if TEXT[who].endswith(".alpha") else torch.ones(2, 2)}
    tensors = {**TRAINERS[style](layers), **part}
    path = saved(tmp_path / "l.safetensors", tensors)
    with caplog.at_level(logging.WARNING):
        weights = loras.fused_weights("qwen-image", folders["qwen-image"], path)
    loras.assert_same(weights, expected)
    assert f"its parts for text encoders or embeddings are not used: {TEXT[who]}" in caplog.text
    only = saved(tmp_path / "only.safetensors", part)
    with pytest.raises(DsctlError, match="has no LoRA layers on a model that is known here"):
        read_lora(only)


OTHERS = {
    "OFT": ("lora_unet_a.oft_blocks", "lycoris_a.oft_diag", "base_model.model.a.oft_R.default.weight", "a.boft_R"),
    "IA3": ("base_model.model.a.ia3_l", "lycoris_a.on_input"),
    "LoCon with a middle matrix": ("lora_unet_a.lora_mid.weight",),
    "GLoRA": ("lycoris_a.a1.weight", "lycoris_a.b2.weight"),
    "VeRA": ("base_model.model.a.vera_lambda_b",),
    "LoRA on an embedding": ("base_model.model.a.lora_embedding_A",),
    "LoRA with biases": ("base_model.model.a.lora_B.bias", "a.lora_B.default.bias"),
    "difference of whole weights": ("diffusion_model.a.diff", "diffusion_model.a.diff_b"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_an_adapter_of_another_kind_is_named(tmp_path: Path, kind: str) -> None:
    layer = {"lora_down.weight": torch.ones(1, 4), "lora_up.weight": torch.ones(4, 1)}
    assert OTHERS[kind]
    for number, key in enumerate(OTHERS[kind]):
        plain = {f"{key.rpartition('a.')[0]}b.{part}": tensor for part, tensor in layer.items()}
        path = saved(tmp_path / f"{number}.safetensors", {**plain, key: torch.ones(2, 2)})
        with pytest.raises(DsctlError, match=f"is a {kind} adapter") as caught:
            read_lora(path)
        assert key in str(caught.value)


A, B = torch.ones(1, 4), torch.ones(4, 1)
WRONG = {
    "a layer under two prefixes": (
        {"transformer.a.lora_A.weight": A, "transformer.a.lora_B.weight": B, "diffusion_model.a.lora_A.weight": A},
        "has a twice, as ",
    ),
    "a layer in two spellings of its matrices": (
        {"a.lora_A.weight": A, "a.lora_B.weight": B, "a.lora_down.weight": A, "a.lora_up.weight": B},
        "has a twice, as ",
    ),
    "a layer with and without an adapter": (
        {"a.lora_A.weight": A, "a.lora_B.weight": B, "a.lora_A.default.weight": A, "a.lora_B.default.weight": B},
        "has a twice, as ",
    ),
    "two adapters": (
        {"a.lora_A.x.weight": A, "a.lora_B.x.weight": B, "b.lora_A.y.weight": A, "b.lora_B.y.weight": B},
        "holds 2 adapters: x, y",
    ),
    "names with and without dots": (
        {"lora_unet_a.lora_down.weight": A, "lora_unet_a.lora_up.weight": B, "b.lora_down.weight": A},
        "mixes two formats of LoRA keys",
    ),
    "an alpha that is a vector": (
        {"a.lora_down.weight": A, "a.lora_up.weight": B, "a.alpha": torch.ones(3)},
        r"a.alpha has the shape \(3,\), not one number",
    ),
    "an alpha alone": ({"a.lora_A.weight": A, "a.lora_B.weight": B, "b.alpha": torch.ones(())}, "an alpha for b"),
    "a magnitude alone": (
        {"a.lora_A.weight": A, "a.lora_B.weight": B, "b.lora_magnitude_vector": torch.ones(4)},
        "a magnitude for b",
    ),
    "one matrix": ({"a.lora_A.weight": A}, "has only one of the two matrices of a"),
    "no rank": ({"a.lora_A.weight": A[:0], "a.lora_B.weight": B[:, :0]}, "a.lora_A.weight is empty"),
    "a convolution": (
        {"a.lora_down.weight": A[..., None, None], "a.lora_up.weight": B[..., None, None]},
        "do not fit each other",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_says_a_layer_twice_or_not_whole_is_refused(tmp_path: Path, what: str) -> None:
    tensors, said = WRONG[what]
    with pytest.raises(DsctlError, match=said):
        read_lora(saved(tmp_path / "l.safetensors", tensors))


@pytest.mark.parametrize("name", WITH_ORIGINAL)
def test_a_layer_under_its_original_and_its_own_name_is_refused(
    folders: Any, made: Any, tmp_path: Path, name: str
) -> None:
    layers, _ = made[name]
    original = load_family(name).original_names
    assert original is not None
    whole = TRAINERS["ComfyUI"](to_original(layers, original, "comfyui"))
    twice = [each for each in layers if f"diffusion_model.{each}.lora_up.weight" not in whole]
    assert twice
    for again in twice:
        path = saved(tmp_path / "l.safetensors", {**whole, **TRAINERS["ComfyUI"]({again: layers[again]})})
        with pytest.raises(DsctlError, match=f"has {again} twice"):
            load_lora(loras.fresh(name, folders[name]), path)
