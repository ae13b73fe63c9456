"""Qwen-Image-Layered's components from single files: told from Qwen-Image's, with the tensors of the folder."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsctl_core.checkpoint.build import component_class
from dsctl_core.checkpoint.load import load_components
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.checkpoint.single_file import conversion_of, identify_single_file, single_file_owners
from dsctl_core.families import families, load_family
from tests.dsctl_core.families.qwen_image_layered.conftest import Pair
from tests.tiny_models import randomize

OFFICIAL = load_family("qwen-image-layered")
CODERS = ("encoder", "decoder")


@pytest.mark.parametrize("name", ["dit", "vae"])
def test_a_single_file_gives_the_tensors_of_the_folder(pair: Pair, tmp_path: Path, name: str) -> None:
    folder = pair.folder / OFFICIAL.component(name).folder
    file = tmp_path / f"{name}.safetensors"
    shutil.copy(folder / "diffusion_pytorch_model.safetensors", file)
    if name == "dit":
        found, component = identify_single_file(families().values(), file)
        assert (found.name, component.name) == ("qwen-image-layered", "dit")
    family = dataclasses.replace(OFFICIAL, published={each: OFFICIAL.tiny[each] for each in ("dit", "vae")})
    one, other = (
        load_components(family, [ModelConfig(path=path)], torch_dtype=torch.bfloat16, device="cpu").models[name]
        for path in (file, folder)
    )
    state, wanted = one.state_dict(), other.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[each], wanted[each]) and state[each].dtype == wanted[each].dtype for each in wanted)


def comfy_vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the VAE with the names of Wan's release, which ComfyUI's files have."""
    convert = conversion_of("AutoencoderKLWan")
    sides = ("weight", "bias", "gamma")
    blocks = [f"{side}.middle.{n}" for side in ("encoder", "decoder") for n in range(3)]
    blocks += [f"encoder.downsamples.{n}" for n in range(11)] + [f"decoder.upsamples.{n}" for n in range(15)]
    layers = ["shortcut", "resample.1", "time_conv", "norm", "to_qkv", "proj", *(f"residual.{n}" for n in (0, 2, 3, 6))]
    names = [f"{block}.{layer}.{side}" for block in blocks for layer in layers for side in sides]
    ends = ("encoder.conv1", "decoder.conv1", "conv1", "conv2", *(f"{c}.head.{n}" for c in CODERS for n in (0, 2)))
    names += [f"{end}.{side}" for end in ends for side in sides]
    turned = {next(iter(convert(checkpoint={name: None}))): name for name in names}
    return {turned[name]: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_the_files_of_comfyui_give_the_tensors_of_the_folder(pair: Pair, tmp_path: Path, prefix: str) -> None:
    sizes = {**OFFICIAL.tiny["vae"], "num_res_blocks": 2}  # as the conversion of names needs it
    vae = randomize(component_class(OFFICIAL.component("vae"))(**sizes), torch.Generator().manual_seed(0))
    wanted = {
        "dit": load_file(pair.folder / "transformer/diffusion_pytorch_model.safetensors"),
        "vae": vae.state_dict(),
    }
    assert wanted["vae"]["encoder.conv_in.weight"].shape[1] == 4, "transparency"
    stored = {
        "dit": {f"{prefix}{name}": tensor for name, tensor in wanted["dit"].items()},
        "vae": comfy_vae(wanted["vae"]),
    }
    family = dataclasses.replace(OFFICIAL, published={"dit": OFFICIAL.tiny["dit"], "vae": sizes})
    alike = [load_family("qwen-image"), load_family("qwen-image-edit"), family]
    for name, tensors in stored.items():
        file = tmp_path / f"qwen_image_layered_{name}.safetensors"
        save_file(tensors, file)
        assert family in single_file_owners(alike, file)
    files = [ModelConfig(path=tmp_path / f"qwen_image_layered_{name}.safetensors") for name in stored]
    assert identify_single_file(alike, Path(str(files[0].path)))[0] is family
    loaded = load_components(family, files, torch_dtype=torch.float32, device="cpu").models
    for name, tensors in wanted.items():
        state = loaded[name].state_dict()
        assert state.keys() == tensors.keys()
        assert all(torch.equal(state[each], tensors[each]) for each in tensors)
