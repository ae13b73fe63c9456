"""Wan's components from single files and original folders: the tensors and dtypes of diffusers' folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsctl_core.checkpoint.build import empty_component
from dsctl_core.checkpoint.load import config_of, load_components, parts_of, require_configs
from dsctl_core.checkpoint.load import find_component_paths as find
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.checkpoint.single_file import identify_single_file
from dsctl_core.errors import DsctlError
from dsctl_core.families import families, load_family
from dsctl_core.families.resolve import resolve_model
from dsctl_core.families.wan.original_names import ORIGINAL_NAMES
from dsctl_core.family import Family
from tests.dsctl_core.families.wan.conftest import KINDS, Pair, Pairs, load
from tests.tiny_models import WAN_KINDS

OFFICIAL = load_family("wan")
WEIGHTS = "diffusion_pytorch_model.safetensors"
# What has no layer of LoRA in the original: tables, norms and convolutions; `norm3` there is `norm2` here.
OTHERS = {
    "head.modulation": "scale_shift_table",
    "patch_embedding": "patch_embedding",
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "blocks.{}.modulation": "blocks.{}.scale_shift_table",
    "blocks.{}.norm3": "blocks.{}.norm2",
    "blocks.{}.self_attn.norm_q": "blocks.{}.attn1.norm_q",
    "blocks.{}.self_attn.norm_k": "blocks.{}.attn1.norm_k",
    "blocks.{}.cross_attn.norm_q": "blocks.{}.attn2.norm_q",
    "blocks.{}.cross_attn.norm_k": "blocks.{}.attn2.norm_k",
    "blocks.{}.cross_attn.norm_k_img": "blocks.{}.attn2.norm_added_k",
}


def tiny_as_published(kinds: tuple[str, ...] = KINDS) -> Family:
    """The family as if its tiny sizes were the published ones."""
    sizes = {kind: {**OFFICIAL.tiny["dit"], **WAN_KINDS[kind][0]} for kind in kinds}
    vaes = {kind: {**OFFICIAL.tiny["vae"], **WAN_KINDS[kind][1]} for kind in kinds}
    variants = {kind: {"dit": sizes[kind], "vae": vaes[kind]} for kind in kinds}
    return dataclasses.replace(OFFICIAL, published=variants[kinds[0]], variants=variants)


def original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the transformer's tensors with the names of the original release."""
    names = {**ORIGINAL_NAMES.single, **OTHERS}
    known = {f"{ours.format(n)}": theirs.format(n) for theirs, ours in names.items() for n in range(2)}
    made = {}
    for name, tensor in state.items():
        layer, dot, part = name.rpartition(".")
        made[known[name] if name in known else f"{known[layer]}{dot}{part}"] = tensor
    return made


def weights_of(pair: Pair) -> dict[str, Tensor]:
    return load_file(pair.folder / "transformer" / WEIGHTS)


def loaded(family: Family, path: Path, dtype: torch.dtype = torch.float32) -> Any:
    ((name, model),) = load_components(family, [ModelConfig(path)], torch_dtype=dtype, device="cpu").models.items()
    return name, model


@pytest.mark.parametrize("prefix", [None, "", "model.diffusion_model."])
@pytest.mark.parametrize("kind", ["t2v", "i2v", "i2v-a14b", "ti2v"])
def test_a_transformer_in_one_file_is_the_one_of_the_folder(
    pairs: Pairs, tmp_path: Path, kind: str, prefix: str | None
) -> None:
    wanted = weights_of(pairs[kind])
    stored = wanted if prefix is None else {f"{prefix}{name}": each for name, each in original(wanted).items()}
    save_file(stored, tmp_path / "a.safetensors")
    name, model = loaded(tiny_as_published(), tmp_path / "a.safetensors")
    assert name == "dit"
    state = model.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    assert model.config.in_channels == pairs[kind].ours.dit.config.in_channels


def original_folder(pair: Pair, folder: Path) -> Path:
    """Write the transformer as the original repositories have it: two shards, an index, and a config of their own."""
    folder.mkdir(parents=True)
    tensors = original(weights_of(pair))
    names, index = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"diffusion_pytorch_model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = {"_class_name": "WanModel", "model_type": "t2v", "dim": 24, "in_dim": 16, "num_layers": 2}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_an_original_folder_is_the_component_that_its_name_says(pairs: Pairs, tmp_path: Path) -> None:
    family, wanted = tiny_as_published(), weights_of(pairs["t2v"])
    for parent in ("Wan2.1-T2V", "high_noise_model"):
        folder = original_folder(pairs["t2v"], tmp_path / parent)
        name, model = loaded(family, folder)
        state = model.state_dict()
        assert name == "dit"
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[key], wanted[key]) for key in wanted)
        assert resolve_model(model_paths=json.dumps([str(folder)])).family.name == "wan"
    low = original_folder(pairs["t2v"], tmp_path / "low_noise_model")
    assert set(find(family, [ModelConfig(low)]).components) == {"dit_2"}
    with pytest.raises(DsctlError, match="nothing says at which noise levels the dit_2 of Wan acts"):
        loaded(family, low)
    parts = family.parts(None, {"boundary_ratio": 0.875, "transformer_2": ["diffusers", "WanTransformer3DModel"]})
    (second,) = load_components(
        family, [ModelConfig(low)], torch_dtype=torch.float32, device="cpu", parts=parts
    ).models.values()
    assert second.state_dict().keys() == wanted.keys()


def test_what_needs_a_config_of_diffusers_refuses_an_original_folder_with_a_word(pairs: Pairs, tmp_path: Path) -> None:
    folder = original_folder(pairs["t2v"], tmp_path / "original")
    with pytest.raises(DsctlError, match="layout of its original release"):
        require_configs(OFFICIAL, find(OFFICIAL, [ModelConfig(folder)]))
    with pytest.raises(DsctlError, match="layout of its original release"):
        empty_component(OFFICIAL.component("dit"), folder)


@pytest.mark.parametrize("kind", ["t2v", "i2v", "flf2v", "ti2v"])
def test_the_kind_of_a_model_follows_from_its_transformer_however_it_is_stored(
    pairs: Pairs, tmp_path: Path, kind: str
) -> None:
    family, pair = tiny_as_published(), pairs[kind]
    save_file(original(weights_of(pair)), tmp_path / "a.safetensors")
    paths = (pair.folder / "transformer", tmp_path / "a.safetensors", original_folder(pair, tmp_path / "original"))
    for path in paths:
        assert config_of(family, path)["in_channels"] == pair.ours.dit.config.in_channels
        parts = parts_of(family, find(family, [ModelConfig(path), ModelConfig(pair.folder / "vae")]))
        assert (parts.kind, parts.division_factor) == (kind, 32 if kind == "ti2v" else 16)
    assert parts_of(family, find(family, [ModelConfig(pair.folder / "vae")])).kind is None


def test_the_published_family_tells_its_files_from_others(pairs: Pairs, tmp_path: Path) -> None:
    for kind in ("t2v", "i2v"):
        save_file(original(weights_of(pairs[kind])), tmp_path / f"{kind}.safetensors")
        family, found = identify_single_file(families().values(), tmp_path / f"{kind}.safetensors")
        assert (family.name, found.name) == ("wan", "dit")


@pytest.mark.parametrize("kind", ["i2v", "ti2v"])
def test_folder_single_file_and_original_folder_have_the_dtypes_of_diffusers(
    pairs: Pairs, tmp_path: Path, kind: str
) -> None:
    from diffusers import WanTransformer3DModel

    pair, family = pairs[kind], tiny_as_published()
    save_file(original(weights_of(pair)), tmp_path / "a.safetensors")
    official = WanTransformer3DModel.from_pretrained(pair.folder / "transformer", dtype=torch.bfloat16)
    wanted = {name: each.dtype for name, each in official.state_dict().items()}
    assert set(wanted.values()) == {torch.bfloat16, torch.float32}
    for path in (pair.folder / "transformer", tmp_path / "a.safetensors", original_folder(pair, tmp_path / "original")):
        _, model = loaded(family, path, torch.bfloat16)
        assert {name: each.dtype for name, each in model.state_dict().items()} == wanted
        buffers, expected = dict(model.named_buffers()), dict(official.named_buffers())
        assert set(buffers) == {"rope.freqs_cos", "rope.freqs_sin"}
        for name, buffer in buffers.items():
            assert torch.equal(buffer, expected[name]), "a table of the rotary embedding is computed, not stored"
            assert buffer.dtype == torch.float32


@pytest.mark.parametrize("stored", ["shared.weight", "encoder.embed_tokens.weight", "both"])
def test_the_embedding_of_the_text_encoder_is_read_under_either_name(pairs: Pairs, tmp_path: Path, stored: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(pairs["t2v"].folder, folder)
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    (name,) = [name for name in tensors if name in ("shared.weight", "encoder.embed_tokens.weight")]
    table = tensors.pop(name)
    names = ["shared.weight", "encoder.embed_tokens.weight"] if stored == "both" else [stored]
    save_file({**tensors, **{name: table.clone() for name in names}}, file, {"format": "pt"})
    encoder = load(folder, only=["text_encoder"]).text_encoder
    assert torch.equal(encoder.shared.weight, table)
    assert torch.equal(encoder.encoder.embed_tokens.weight, table)


def test_a_norm_that_the_published_files_have_too_many_is_left_out(pairs: Pairs, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(pairs["i2v"].folder, folder)
    tensors = weights_of(pairs["i2v"])
    extra = {f"blocks.{n}.attn2.norm_added_q.weight": torch.ones(24) for n in range(2)}
    save_file({**tensors, **extra}, folder / "transformer" / WEIGHTS, {"format": "pt"})
    state = load(folder, only=["dit"]).dit.state_dict()
    assert state.keys() == tensors.keys()
