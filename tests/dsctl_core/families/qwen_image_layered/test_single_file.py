"""Qwen-Image-Layered's components from single files: told from Qwen-Image's, with the tensors of the folder."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from dsctl_core.checkpoint.load import load_components
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.checkpoint.single_file import identify_single_file
from dsctl_core.families import families, load_family
from tests.dsctl_core.families.qwen_image_layered.conftest import Pair

OFFICIAL = load_family("qwen-image-layered")


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
