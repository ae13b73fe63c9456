"""Z-Image's components from single files: in diffusers' names, and in the original ones with fused attention."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsctl_core.checkpoint.load import load_components
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.checkpoint.single_file import identify_single_file
from dsctl_core.families import families, load_family
from dsctl_core.family import Family
from tests.dsctl_core.families.z_image.conftest import Pair

OFFICIAL = load_family("z-image")
TINY = {name: OFFICIAL.tiny[name] for name in ("dit", "vae")}
OMNI = {**TINY["dit"], "siglip_feat_dim": OFFICIAL.tiny["siglip"]["hidden_size"]}
RENAMES = (
    (r"^all_final_layer\.2-1", "final_layer"),
    (r"^all_x_embedder\.2-1", "x_embedder"),
    (r"attention\.to_out\.0", "attention.out"),
    (r"attention\.norm_([qk])", r"attention.\1_norm"),
)
VAE_NAMES = (
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
    (r"mid_block\.attentions\.0", lambda m: "mid.attn_1"),
    (r"down_blocks\.(\d)\.resnets", lambda m: f"down.{m[1]}.block"),
    (r"down_blocks\.(\d)\.downsamplers\.0", lambda m: f"down.{m[1]}.downsample"),
    (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{3 - int(m[1])}.block"),
    (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample"),
    (r"conv_shortcut", lambda m: "nin_shortcut"),
    (r"conv_norm_out", lambda m: "norm_out"),
    (r"group_norm", lambda m: "norm"),
    (r"\.to_out\.0\.", lambda m: ".proj_out."),
    (r"\.to_([qkv])\.", lambda m: f".{m[1]}."),
)


@pytest.fixture
def family() -> Family:
    """The family as if its tiny sizes were the published ones."""
    return dataclasses.replace(OFFICIAL, published=TINY, variants={"omni": {"dit": OMNI}})


def original_dit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the transformer's tensors as the original files have them."""
    made = {}
    for name, tensor in state.items():
        if re.search(r"attention\.to_[kv]\.", name):
            continue
        if ".attention.to_q." in name:
            parts = [state[name.replace("to_q", f"to_{part}")] for part in "qkv"]
            name, tensor = name.replace("to_q", "qkv"), torch.cat(parts)
        for pattern, new in RENAMES:
            name = re.sub(pattern, new, name)
        made[name] = tensor
    return made


def original_vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the VAE's tensors as FLUX.1's file has them: its attention is made of convolutions."""
    made = {}
    for name, tensor in state.items():
        renamed = name
        for pattern, new in VAE_NAMES:
            renamed = re.sub(pattern, new, renamed)
        convolution = "mid.attn_1" in renamed and renamed.endswith("weight") and tensor.ndim == 2
        made[renamed] = (tensor[..., None, None] if convolution else tensor).contiguous()
    return made


TURNS = {"transformer": original_dit, "vae": original_vae}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("part", "original", "prefix"),
    [
        ("transformer", False, ""),
        ("transformer", True, ""),
        ("transformer", True, "model.diffusion_model."),
        ("transformer", False, "diffusion_model."),
        ("vae", False, ""),
        ("vae", True, ""),
    ],
)
def test_a_component_in_one_file_is_the_one_of_the_folder_to_the_dtype(
    pair: Pair, family: Family, tmp_path: Path, part: str, original: bool, prefix: str, dtype: torch.dtype
) -> None:
    stored = load_file(pair.folder / part / "diffusion_pytorch_model.safetensors")
    turned = TURNS[part](stored) if original else stored
    assert (len(turned.keys() - stored.keys()) > 5) == original
    save_file({f"{prefix}{name}": tensor for name, tensor in turned.items()}, tmp_path / "a.safetensors")
    states = []
    for path in (pair.folder, tmp_path / "a.safetensors"):
        component = {"transformer": "dit", "vae": "vae"}[part]
        loaded = load_components(family, [ModelConfig(path)], torch_dtype=dtype, device="cpu", only=[component])
        states.append(loaded.models[component].state_dict())
    folder, single = states
    assert single.keys() == folder.keys()
    assert all(torch.equal(single[name], folder[name]) for name in folder)
    assert {name: tensor.dtype for name, tensor in single.items()} == {n: t.dtype for n, t in folder.items()}


@pytest.mark.parametrize("original", [False, True])
def test_the_published_families_tell_its_files_from_others(pair: Pair, tmp_path: Path, original: bool) -> None:
    for part, component in (("transformer", "dit"), ("vae", "vae")):
        state = load_file(pair.folder / part / "diffusion_pytorch_model.safetensors")
        save_file(TURNS[part](state) if original else state, tmp_path / f"{component}.safetensors")
        family, found = identify_single_file(families().values(), tmp_path / f"{component}.safetensors")
        assert found.name == component
        assert family.name == "z-image" or component == "vae", "the VAE is that of other families too"
