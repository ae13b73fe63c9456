"""FLUX.2's components from single files: in diffusers' names, and in the original ones of its first publication."""

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
from dsctl_core.families.flux2.original_names import ORIGINAL_NAMES
from dsctl_core.family import Family
from tests.dsctl_core.families.flux2.conftest import Pair

OFFICIAL = load_family("flux2")
TINY = {name: OFFICIAL.tiny[name] for name in ("dit", "vae")}
GUIDED = {**TINY["dit"], "guidance_embeds": True}
NORMS = {"norm_q": "img_attn.norm.query_norm", "norm_k": "img_attn.norm.key_norm"}
NORMS |= {"norm_added_q": "txt_attn.norm.query_norm", "norm_added_k": "txt_attn.norm.key_norm"}


@pytest.fixture
def family() -> Family:
    """The family as if its tiny sizes, without guidance and with, were the published ones."""
    return dataclasses.replace(OFFICIAL, published=TINY, variants={"guided": {"dit": GUIDED}})


def original_dit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the transformer's tensors as the original files have them: fused, and the last modulation turned round."""
    state, made = dict(state), {}
    for number in range(2):
        for original, parts in ORIGINAL_NAMES.fused.items():
            names = [f"{part.format(number)}.weight" for part in parts]
            if names[0] in state:
                made[f"{original.format(number)}.weight"] = torch.cat([state.pop(name) for name in names])
        for original, ours in ORIGINAL_NAMES.single.items():
            if f"{ours.format(number)}.weight" in state:
                made[f"{original.format(number)}.weight"] = state.pop(f"{ours.format(number)}.weight")
        for ours, original in NORMS.items():
            if f"transformer_blocks.{number}.attn.{ours}.weight" in state:
                tensor = state.pop(f"transformer_blocks.{number}.attn.{ours}.weight")
                made[f"double_blocks.{number}.{original}.scale"] = tensor
        for ours, original in (("norm_q", "query_norm"), ("norm_k", "key_norm")):
            if f"single_transformer_blocks.{number}.attn.{ours}.weight" in state:
                tensor = state.pop(f"single_transformer_blocks.{number}.attn.{ours}.weight")
                made[f"single_blocks.{number}.norm.{original}.scale"] = tensor
    made["final_layer.adaLN_modulation.1.weight"] = torch.cat(state.pop("norm_out.linear.weight").chunk(2)[::-1])
    assert not state
    return made


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
    (r"^quant_conv", lambda m: "encoder.quant_conv"),
    (r"^post_quant_conv", lambda m: "decoder.post_quant_conv"),
)


def original_vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the VAE's tensors as the original files have them: its attention is made of convolutions."""
    made = {}
    for name, tensor in state.items():
        renamed = name
        for pattern, new in VAE_NAMES:
            renamed = re.sub(pattern, new, renamed)
        convolution = "mid.attn_1" in renamed and renamed.endswith("weight") and tensor.ndim == 2
        made[renamed] = tensor[..., None, None] if convolution else tensor
    return {name: tensor.contiguous() for name, tensor in made.items()}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("original", [False, True])
def test_a_transformer_in_one_file_is_the_one_of_the_folder(
    pair: Pair, family: Family, tmp_path: Path, original: bool, prefix: str
) -> None:
    wanted = load_file(pair.folder / "transformer" / "diffusion_pytorch_model.safetensors")
    stored = original_dit(wanted) if original else wanted
    save_file({f"{prefix}{name}": tensor for name, tensor in stored.items()}, tmp_path / "a.safetensors")
    loaded = load_components(family, [ModelConfig(tmp_path / "a.safetensors")], torch_dtype=torch.float32, device="cpu")
    ((name, model),) = loaded.models.items()
    assert name == "dit"
    assert model.config.guidance_embeds == (pair.name == "dev")
    state = model.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("original", [False, True])
def test_a_vae_in_one_file_is_the_one_of_the_folder(
    klein: Pair, family: Family, tmp_path: Path, original: bool
) -> None:
    wanted = load_file(klein.folder / "vae" / "diffusion_pytorch_model.safetensors")
    stored = original_vae(wanted) if original else wanted
    assert (len(stored.keys() - wanted.keys()) > 40) == original
    save_file(stored, tmp_path / "ae.safetensors")
    loaded = load_components(
        family, [ModelConfig(tmp_path / "ae.safetensors")], torch_dtype=torch.float32, device="cpu"
    )
    state = loaded.models["vae"].state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)


def test_the_published_families_tell_its_files_from_others(klein: Pair, tmp_path: Path) -> None:
    for folder, component, turn in (("transformer", "dit", original_dit), ("vae", "vae", original_vae)):
        state = load_file(klein.folder / folder / "diffusion_pytorch_model.safetensors")
        save_file(turn(state), tmp_path / f"{component}.safetensors")
        family, found = identify_single_file(families().values(), tmp_path / f"{component}.safetensors")
        # The layout of the VAE is that of FLUX.1's too, so that the transformer tells the family.
        assert (family.name, found.name) == ("flux1" if component == "vae" else "flux2", component)
