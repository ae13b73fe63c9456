"""A weight file without a config.json is told by its tensors' names, also in ComfyUI's and in the original layout."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsctl_core import ModelConfig
from dsctl_core.checkpoint.load import load_components
from dsctl_core.checkpoint.single_file import identify_single_file
from dsctl_core.checkpoint.stream import rewrite
from dsctl_core.errors import DsctlError
from dsctl_core.families import families, load_family
from dsctl_core.lora.extract import extract
from tests.tiny_models import write_tiny_model

# The family as if its tiny sizes were the published ones.
FAMILY = dataclasses.replace(load_family("qwen-image"), published=load_family("qwen-image").tiny)
FAMILY = dataclasses.replace(FAMILY, published={name: FAMILY.tiny[name] for name in ("dit", "vae")})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model("qwen-image", tmp_path_factory.mktemp("models") / "tiny")


def tensors(folder, component):
    return load_file(folder / component / "diffusion_pytorch_model.safetensors")


def load(path):
    return load_components(FAMILY, [ModelConfig(path)], torch_dtype=torch.float32, device="cpu").models


@pytest.mark.parametrize("component", ["transformer", "vae"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_a_file_loads_as_the_folder_does_whatever_stands_in_front(folder, tmp_path, component, prefix):
    wanted = tensors(folder, component)
    save_file({f"{prefix}{name}": tensor for name, tensor in wanted.items()}, tmp_path / "a.safetensors")
    ((name, model),) = load(tmp_path / "a.safetensors").items()
    assert name == {"transformer": "dit", "vae": "vae"}[component]
    state = model.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_a_model_from_a_single_file_computes_what_the_folders_does(folder, tmp_path):
    save_file(tensors(folder, "vae"), tmp_path / "vae.safetensors")
    picture = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 1, 16, 16)
    single, whole = load(tmp_path / "vae.safetensors")["vae"], load(folder / "vae")["vae"]
    with torch.no_grad():
        torch.testing.assert_close(single.encode(picture).latent_dist.mode(), whole.encode(picture).latent_dist.mode())


def original_names(names):
    """The original names of the VAE's tensors: each that diffusers' conversion turns into one of `names`."""
    return {
        name: name.replace("mid_block.resnets.0.norm1.gamma", "middle.0.residual.0.gamma")
        .replace("mid_block.resnets.0.conv1", "middle.0.residual.2")
        .replace("mid_block.resnets.0.norm2.gamma", "middle.0.residual.3.gamma")
        .replace("mid_block.resnets.0.conv2", "middle.0.residual.6")
        .replace("mid_block.resnets.1.norm1.gamma", "middle.2.residual.0.gamma")
        .replace("mid_block.resnets.1.conv1", "middle.2.residual.2")
        .replace("mid_block.resnets.1.norm2.gamma", "middle.2.residual.3.gamma")
        .replace("mid_block.resnets.1.conv2", "middle.2.residual.6")
        .replace("mid_block.attentions.0", "middle.1")
        for name in names
    }


def test_original_names_of_the_vae_are_converted_by_diffusers(folder, tmp_path):
    wanted = tensors(folder, "vae")
    renamed = original_names(wanted)
    assert sum(old != new for old, new in renamed.items()) > 20
    save_file({renamed[name]: tensor for name, tensor in wanted.items()}, tmp_path / "vae.safetensors")
    state = load(tmp_path / "vae.safetensors")["vae"].state_dict()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


def test_the_published_families_tell_their_own_files(folder, tmp_path):
    save_file(tensors(folder, "transformer"), tmp_path / "a.safetensors")
    family, component = identify_single_file(families().values(), tmp_path / "a.safetensors")
    assert (family.name, component.name) == ("qwen-image", "dit")


def test_an_unknown_file_is_refused_with_the_nearest_components(folder, tmp_path):
    some = dict(list(tensors(folder, "transformer").items())[:20])
    save_file({**some, "else.weight": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(DsctlError, match="no component that is known") as caught:
        load(tmp_path / "a.safetensors")
    assert "nearest: dit of qwen-image (" in (caught.value.hint or "")


@pytest.mark.parametrize("prefix", ["", "text_encoders.", "model."])
def test_a_text_encoder_is_refused_with_what_to_name_instead(folder, tmp_path, prefix):
    (file,) = (folder / "text_encoder").glob("*.safetensors")
    alone = tmp_path / "alone" / "encoder.safetensors"
    alone.parent.mkdir()
    save_file({f"{prefix}{name}": tensor for name, tensor in load_file(file).items()}, alone)
    with pytest.raises(DsctlError, match="is a text encoder by the names of its tensors") as caught:
        load(alone)
    assert "--tokenizer-path" in (caught.value.hint or "")


def test_other_sizes_than_the_published_are_named(folder, tmp_path):
    changed = {**tensors(folder, "transformer"), "proj_out.bias": torch.ones(3)}
    save_file(changed, tmp_path / "a.safetensors")
    with pytest.raises(DsctlError, match=r"proj_out\.bias is \(3,\), but"):
        load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(("name", "marks"), [("scale_weight", "scaled_fp8"), ("weight_scale", "a.comfy_quant")])
@pytest.mark.parametrize("each_row", [False, True])
def test_a_file_in_scaled_fp8_is_read_as_its_weights_times_their_scales(folder, tmp_path, name, marks, each_row):
    stored, wanted = {marks: torch.zeros(2, dtype=torch.uint8)}, {}
    for key, tensor in tensors(folder, "transformer").items():
        stored[key] = wanted[key] = tensor
        if key.startswith("transformer_blocks.") and tensor.ndim == 2:
            scale = (tensor.abs().amax(1) if each_row else tensor.abs().max()) / 448
            module = key.removesuffix(".weight")
            stored[f"{module}.{name}"] = scale
            stored[f"{module}.{'scale_input' if name == 'scale_weight' else 'input_scale'}"] = torch.ones(())
            stored[key] = (tensor / scale.reshape(-1, 1)).to(torch.float8_e4m3fn)
            wanted[key] = stored[key].float() * scale.reshape(-1, 1)
    assert len(stored) > len(wanted) + 40
    file = tmp_path / "a.safetensors"
    save_file({f"model.diffusion_model.{key}": tensor for key, tensor in stored.items()}, file)
    state = load(file)["dit"].state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    with pytest.raises(DsctlError, match="scaled fp8"):  # what streams over its tensors would take them without scales
        rewrite(file, tmp_path / "b.safetensors", {"any": lambda rows, _: rows}, print)
    with pytest.raises(DsctlError, match="scaled fp8"):
        extract(file, file, ["a"], 1)
