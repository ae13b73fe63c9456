"""What every family promises, whichever it is: published sizes and files, units, batches."""

from __future__ import annotations

import fnmatch
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dsctl_core.families as package
from dsctl_core.checkpoint.load import component_class
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.families import families, identify_folder, pipeline_class
from dsctl_core.family import Component, Family, Preset
from dsctl_core.pipeline import BasePipeline
from tests.tiny_models import BUILDERS, write_tiny_model

FAMILIES = list(families().values())
PRESETS = [(family, preset) for family in FAMILIES for preset in family.presets]
PUBLISHED = [(family, family.component(name)) for family in FAMILIES for name in family.published]

# What is in the published repositories, without pictures and licences.
QWEN_IMAGE_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/generation_config.json",
    *(f"text_encoder/model-0000{n}-of-00004.safetensors" for n in range(1, 5)),
    "text_encoder/model.safetensors.index.json",
    "tokenizer/added_tokens.json",
    "tokenizer/chat_template.jinja",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "transformer/config.json",
    *(f"transformer/diffusion_pytorch_model-0000{n}-of-00009.safetensors" for n in range(1, 10)),
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)
REPOSITORIES = {"Qwen/Qwen-Image": QWEN_IMAGE_FILES, "Qwen/Qwen-Image-2512": QWEN_IMAGE_FILES}

# Tensors and parameters of the published weights. Twice the parameters is the size of the files (bfloat16):
# 40.9 GB for Qwen-Image's transformer, 254 MB for its VAE.
WEIGHTS = {("qwen-image", "dit"): (1933, 20_430_401_088), ("qwen-image", "vae"): (194, 126_892_531)}

# The tensors of one block of the published Qwen-Image transformer, and of what is around the blocks, as its index
# file has them. D = 3072 is the width.
D = 3072
QWEN_IMAGE_BLOCK = {
    **{f"attn.{name}.weight": (D, D) for name in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")},
    **{f"attn.{name}.bias": (D,) for name in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")},
    **{f"attn.add_{name}_proj.weight": (D, D) for name in "qkv"},
    **{f"attn.add_{name}_proj.bias": (D,) for name in "qkv"},
    **{f"attn.norm_{name}.weight": (128,) for name in ("q", "k", "added_q", "added_k")},
    **{f"{stream}_mod.1.weight": (6 * D, D) for stream in ("img", "txt")},
    **{f"{stream}_mod.1.bias": (6 * D,) for stream in ("img", "txt")},
    **{f"{stream}_mlp.net.0.proj.weight": (4 * D, D) for stream in ("img", "txt")},
    **{f"{stream}_mlp.net.0.proj.bias": (4 * D,) for stream in ("img", "txt")},
    **{f"{stream}_mlp.net.2.weight": (D, 4 * D) for stream in ("img", "txt")},
    **{f"{stream}_mlp.net.2.bias": (D,) for stream in ("img", "txt")},
}
QWEN_IMAGE_AROUND = {
    "img_in.weight": (D, 64),
    "img_in.bias": (D,),
    "txt_in.weight": (D, 3584),
    "txt_in.bias": (D,),
    "txt_norm.weight": (3584,),
    "time_text_embed.timestep_embedder.linear_1.weight": (D, 256),
    "time_text_embed.timestep_embedder.linear_1.bias": (D,),
    "time_text_embed.timestep_embedder.linear_2.weight": (D, D),
    "time_text_embed.timestep_embedder.linear_2.bias": (D,),
    "norm_out.linear.weight": (2 * D, D),
    "norm_out.linear.bias": (2 * D,),
    "proj_out.weight": (64, D),
    "proj_out.bias": (64,),
}
SHAPES: dict[tuple[str, str], dict[str, tuple[int, ...]]] = {
    ("qwen-image", "dit"): {
        **QWEN_IMAGE_AROUND,
        **{f"transformer_blocks.{n}.{name}": s for n in range(60) for name, s in QWEN_IMAGE_BLOCK.items()},
    }
}


def ids(pairs: list[tuple[Family, Any]]) -> list[str]:
    return [f"{family.name}-{other.name}" for family, other in pairs]


@cache
def on_meta(family: str, component: str) -> nn.Module:
    """A component at its published sizes, without memory for it."""
    with torch.device("meta"):
        declared = families()[family]
        return component_class(declared.component(component))(**declared.published[component])


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BasePipeline:
    """A tiny random model of the family, in float32."""
    family: Family = request.param
    folder = write_tiny_model(family.name, tmp_path_factory.mktemp(family.name))
    assert identify_folder(folder) is family
    return pipeline_class(family).from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(path=folder)]
    )


def small(family: Family) -> dict[str, Any]:
    """Options for a picture that is quickly made, not square."""
    sides = {"height": 2 * family.division_factor, "width": 3 * family.division_factor}
    return {**sides, "num_inference_steps": 2, "cfg_scale": 2.0}


def test_every_family_is_seen() -> None:
    folders = [path.parent.name for path in Path(package.__path__[0]).glob("*/family.py")]
    assert len(FAMILIES) == len(folders) >= 1
    assert "qwen-image" in families()
    assert {"tiny", "qwen-image", "qwen-image-2512"} <= {preset.name for _, preset in PRESETS}
    assert set(BUILDERS) == set(families()), "every family has a tiny random model for tests"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_tiny_model_is_the_same_every_time(family: Family, tmp_path: Path) -> None:
    first, second, other = (
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.safetensors")}
        for folder in (write_tiny_model(family.name, tmp_path / f"{n}", seed=n // 2) for n in range(3))
    )
    assert first == second
    assert len(first) == len(family.components)
    assert all(other[name] != content for name, content in first.items())


def test_names_are_one_of_a_kind() -> None:
    names = [preset.name for _, preset in PRESETS]
    assert len(names) == len(set(names))
    classes = [name for family in FAMILIES for name in family.pipeline_classes]
    assert len(classes) == len(set(classes))


@pytest.mark.parametrize(("family", "component"), PUBLISHED, ids=ids(PUBLISHED))
def test_full_size_names_and_shapes_are_those_of_the_library(family: Family, component: Component) -> None:
    with torch.device("meta"):
        official = component_class(component)()  # the library's defaults are the published sizes
    assert shapes(on_meta(family.name, component.name)) == shapes(official)


@pytest.mark.parametrize(("family", "component"), PUBLISHED, ids=ids(PUBLISHED))
def test_full_size_names_and_shapes_are_those_of_the_published_weights(family: Family, component: Component) -> None:
    found = shapes(on_meta(family.name, component.name))
    assert (len(found), sum(int(np.prod(shape)) for shape in found.values())) == WEIGHTS[family.name, component.name]
    assert SHAPES.get((family.name, component.name), found) == found


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_network_that_is_trained_has_its_sizes_published(family: Family) -> None:
    assert {"dit", "vae"} <= set(family.published)
    assert (family.name, "dit") in SHAPES


@pytest.mark.parametrize(("family", "preset"), PRESETS, ids=ids(PRESETS))
def test_a_preset_is_either_embedded_or_published(family: Family, preset: Preset) -> None:
    folder = preset.local_path()
    if preset.model_id is None:
        assert folder is not None
        assert identify_folder(folder) is family
        assert not preset.files
    else:
        assert folder is None
        assert set(preset.files) == {component.name for component in family.components}


@pytest.mark.parametrize(("family", "preset"), PRESETS, ids=ids(PRESETS))
def test_file_patterns_match_the_published_repository(family: Family, preset: Preset) -> None:
    if preset.model_id is None:
        return
    files = REPOSITORIES[preset.model_id]
    taken = []
    for name, pattern in preset.files.items():
        matches = fnmatch.filter(files, pattern)
        assert matches, f"{pattern} matches nothing in {preset.model_id}"
        assert {Path(file).parent.name for file in matches} == {family.component(name).folder}
        taken += matches
    weights = [file for file in files if file.endswith(".safetensors")]
    assert sorted(taken) == sorted(weights), "every weight file belongs to exactly one component"
    assert any(file.startswith(family.tokenizer_files) for file in files)
    assert family.tokenizer_files.rstrip("/") == family.tokenizer_folder


@pytest.mark.parametrize(("family", "preset"), PRESETS, ids=ids(PRESETS))
def test_defaults_are_complete_and_possible(family: Family, preset: Preset) -> None:
    for defaults in (family.defaults, preset.defaults):
        assert {"height", "width", "num_inference_steps", "cfg_scale"} <= set(defaults)
        assert defaults["height"] % family.division_factor == defaults["width"] % family.division_factor == 0


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_lora_target_is_a_linear_layer_of_the_published_network(family: Family) -> None:
    layers = [name for name, layer in on_meta(family.name, "dit").named_modules() if type(layer) is nn.Linear]
    for target in family.lora_targets:
        assert any(re.search(rf"(^|\.){re.escape(target)}$", name) for name in layers), f"{target} is not there"


def test_units_write_what_they_declare_and_read_what_is_there(tiny: BasePipeline) -> None:
    options = small(tiny.family)
    picture = Image.effect_noise((options["width"], options["height"]), 60).convert("RGB")
    mask = Image.new("L", picture.size, 255)
    tiny.scheduler.set_timesteps(2, dynamic_shift_len=6)
    shared = {**options, "seed": [1], "input_image": picture, "inpaint_mask": mask}
    posi, nega = {"prompt": "a"}, {"negative_prompt": "b"}
    ran = 0
    for unit in tiny.units:
        sides = [(shared, posi), (shared, nega)] if unit.separate_cfg else [(shared, {})]
        for common, own in sides:
            available = {**common, **{name.removeprefix("negative_"): value for name, value in own.items()}}
            inputs = {name: available[name] for name in unit.input_params if name in available}
            with torch.no_grad():
                outputs = unit.process(tiny, **inputs)
            assert set(outputs) == set(unit.output_params), type(unit).__name__
            ran += 1
        with torch.no_grad():
            shared, posi, nega = tiny.unit_runner(unit, tiny, shared, posi, nega)
    assert ran > len(tiny.units) >= 3, "a family has units, and one of them reads the prompts"
    assert set(tiny.in_iteration_models) <= {component.name for component in tiny.family.components}


def test_units_touch_only_the_models_that_they_name(tiny: BasePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    options = small(tiny.family)
    picture = Image.new("RGB", (options["width"], options["height"]), "red")
    shared = {**options, "seed": [1], "input_image": picture, "inpaint_mask": Image.new("L", picture.size)}
    posi, nega = {"prompt": "a"}, {"negative_prompt": "b"}
    everything = dict(tiny._modules)
    for unit in tiny.units:
        for name in everything:
            monkeypatch.setitem(tiny._modules, name, everything[name] if name in unit.onload_model_names else None)
        with torch.no_grad():
            shared, posi, nega = tiny.unit_runner(unit, tiny, shared, posi, nega)
    assert "latents" in shared


def test_a_batch_of_two_equals_two_of_one(tiny: BasePipeline) -> None:
    options = small(tiny.family)
    prompts = ["a fox", "a small yellow star in the top left corner"]
    together = tiny(prompts, negative_prompt="blue", seed=[3, 4], **options)
    assert len(together) == 2
    for made, prompt, seed in zip(together, prompts, (3, 4), strict=True):
        alone = tiny(prompt, negative_prompt="blue", seed=seed, **options)
        difference = np.abs(np.array(made).astype(int) - np.array(alone).astype(int))
        # The same to about 1e-6 before rounding to pixels: hardly any of them may round the other way.
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01
    assert not np.array_equal(np.array(together[0]), np.array(together[1]))


def test_latents_of_training_decode_to_pictures_of_their_size(tiny: BasePipeline) -> None:
    options = small(tiny.family)
    picture = Image.new("RGB", (options["width"], options["height"]), "red")
    tiny.scheduler.set_timesteps(training=True)
    with torch.no_grad():
        shared, _, _ = tiny.run_units(*type(tiny).inputs_from_rows([{"image": picture, "prompt": "a", "seed": 1}] * 2))
        decoded = tiny.decode_latents(shared["input_latents"])
    assert [image.size for image in decoded] == [picture.size] * 2


def test_training_inputs_lead_to_a_gradient(tiny: BasePipeline) -> None:
    options = small(tiny.family)
    rows = [
        {"image": Image.new("RGB", (options["width"], options["height"]), colour), "prompt": colour, "seed": seed}
        for seed, colour in enumerate(("red", "blue"))
    ]
    tiny.scheduler.set_timesteps(training=True)
    shared, posi, _ = tiny.run_units(*type(tiny).inputs_from_rows(rows))
    dit = tiny.component("dit").requires_grad_(True)
    try:
        timestep = tiny.scheduler.timesteps[[100, 900]]
        velocity = tiny.call_model_fn(timestep=timestep, **{**shared, **posi})
        assert velocity.shape == shared["input_latents"].shape
        velocity.square().mean().backward()
        assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in dit.parameters())
    finally:
        dit.zero_grad()
        dit.requires_grad_(False)
