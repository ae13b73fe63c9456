"""Contract of every family: published sizes and files, units, batches."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dsctl_core.families as package
from dsctl_core.checkpoint.build import component_class
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.errors import UsageError
from dsctl_core.families import families, identify_folder, load_family, pipeline_class
from dsctl_core.family import Component, Family, Preset
from dsctl_core.lora.targets import find_targets
from dsctl_core.pipeline import BasePipeline
from tests.contract.media import filled, pictures_of, pixels_of, row, small
from tests.contract.published import NOT_THE_DEFAULTS, REPOSITORIES, WEIGHTS
from tests.contract.published_shapes import SHAPES
from tests.families_fixture.tiny import added_families, write_dawn
from tests.tiny_models import BUILDERS, write_tiny_model

FAMILIES = list(families().values())
with added_families():  # what needs no published weights is tried on a family that has none, too
    EVERY_FAMILY = list(families().values())
PRESETS = [(family, preset) for family in FAMILIES for preset in family.presets]
PUBLISHED = [(family, family.component(name)) for family in FAMILIES for name in family.published]
# Every published size: (family, variant, component).
SIZES = [
    *((family, None, family.component(name)) for family in FAMILIES for name in family.published),
    *((f, variant, f.component(name)) for f in FAMILIES for variant, sizes in f.variants.items() for name in sizes),
]


def ids(pairs: list[tuple[Family, Any]]) -> list[str]:
    return [f"{family.name}-{other.name}" for family, other in pairs]


@cache
def on_meta(family: str, component: str, variant: str | None = None) -> nn.Module:
    """A component at its published sizes, without memory for it."""
    with torch.device("meta"):
        declared = families()[family]
        return component_class(declared.component(component))(**declared.sizes(component, variant))


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module", params=EVERY_FAMILY, ids=lambda family: family.name)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BasePipeline]:
    """A tiny random model of the family, in float32."""
    folder = tmp_path_factory.mktemp("tiny") / request.param.name
    with added_families():
        family = load_family(request.param.name)
        write_dawn(folder) if family.name == "dawn" else write_tiny_model(family.name, folder)
        assert identify_folder(folder) is family
        yield pipeline_class(family).from_pretrained(
            torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(path=folder)]
        )


def test_every_family_is_seen() -> None:
    folders = [path.parent.name for path in Path(package.__path__[0]).glob("*/family.py")]
    assert len(FAMILIES) == len(folders) >= 1
    assert {"qwen-image", "flux1", "flux2", "z-image", "wan"} <= set(families())
    assert [family.name for family in EVERY_FAMILY if family.name not in families()] == ["dawn"]
    assert {"tiny", "qwen-image", "qwen-image-2512"} <= {preset.name for _, preset in PRESETS}
    assert set(BUILDERS) == set(families()), "every family has a tiny random model for tests"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_tiny_model_is_the_same_every_time(family: Family, tmp_path: Path) -> None:
    first, second, other = (
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.safetensors")}
        for folder in (write_tiny_model(family.name, tmp_path / f"{n}", seed=n // 2) for n in range(3))
    )
    assert first == second
    assert len(first) == sum(not component.optional for component in family.components)
    assert all(other[name] != content for name, content in first.items())


def test_names_are_one_of_a_kind() -> None:
    names = [preset.name for _, preset in PRESETS]
    assert len(names) == len(set(names))
    classes = [name for family in FAMILIES for name in family.pipeline_classes]
    assert len(classes) == len(set(classes))


BY_DEFAULT = [(family, part) for family, part in PUBLISHED if (family.name, part.name) not in NOT_THE_DEFAULTS]


@pytest.mark.parametrize(("family", "component"), BY_DEFAULT, ids=ids(BY_DEFAULT))
def test_full_size_names_and_shapes_are_those_of_the_library(family: Family, component: Component) -> None:
    with torch.device("meta"):
        official = component_class(component)()  # the library's defaults are the published sizes
    assert shapes(on_meta(family.name, component.name)) == shapes(official)


@pytest.mark.parametrize(("family", "variant", "component"), SIZES, ids=lambda each: getattr(each, "name", str(each)))
def test_full_size_names_and_shapes_are_those_of_the_published_weights(
    family: Family, variant: str | None, component: Component
) -> None:
    found = shapes(on_meta(family.name, component.name, variant))
    key = (family.name, variant, component.name)
    assert (len(found), sum(int(np.prod(shape)) for shape in found.values())) == WEIGHTS[key]
    assert SHAPES.get(key, found) == found


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_network_that_is_trained_has_its_sizes_published(family: Family) -> None:
    assert {"dit", "vae"} <= set(family.published)
    assert all((family.name, variant, "dit") in SHAPES for variant in (None, *family.variants))
    assert {preset.variant for preset in family.presets} <= {None, *family.variants}


@pytest.mark.parametrize(("family", "preset"), PRESETS, ids=ids(PRESETS))
def test_a_preset_is_either_embedded_or_published(family: Family, preset: Preset) -> None:
    folder = preset.local_path()
    if preset.model_id is None:
        assert folder is not None
        assert identify_folder(folder) is family
        assert not preset.files
    else:
        assert folder is None
        files, readers = family.component_files(preset), family.reader_files(preset)
        always = {component.name for component in family.components if not component.optional}
        assert always <= set(files) <= {component.name for component in family.components}
        assert {reader.name for reader in family.readers if not reader.optional} <= set(readers)
        assert set(preset.from_repositories) <= {*files, *readers}


@pytest.mark.parametrize(("family", "preset"), PRESETS, ids=ids(PRESETS))
def test_distilled_weights_name_those_to_train_instead(family: Family, preset: Preset) -> None:
    if preset.base_preset is not None:
        base = next(each for each in family.presets if each.name == preset.base_preset)
        assert base.base_preset is None
        assert base.variant == preset.variant
        assert base.defaults["num_inference_steps"] > preset.defaults["num_inference_steps"]


@pytest.mark.parametrize(("family", "preset"), PRESETS, ids=ids(PRESETS))
def test_file_patterns_match_the_published_repository(family: Family, preset: Preset) -> None:
    if preset.model_id is None:
        return
    files_of_components = family.component_files(preset)
    assert files_of_components
    for name, pattern in files_of_components.items():
        files = REPOSITORIES[preset.repository(name)]
        matches = fnmatch.filter(files, pattern)
        folder = family.component(name).folder
        assert matches, f"{pattern} matches nothing in {preset.repository(name)}"
        weights = [file for file in files if file.endswith(".safetensors") and Path(file).parent.name == folder]
        assert sorted(matches) == sorted(weights), "a component is all weight files of its folder, and no other"
    for name, pattern in family.reader_files(preset).items():
        assert any(file.startswith(pattern) for file in REPOSITORIES[preset.repository(name)])
        assert pattern.rstrip("/") == family.reader(name).folder


@pytest.mark.parametrize(("family", "preset"), PRESETS, ids=ids(PRESETS))
def test_defaults_are_complete_and_possible(family: Family, preset: Preset) -> None:
    for defaults in (family.defaults, preset.defaults):
        assert {"height", "width", "num_inference_steps", "cfg_scale"} <= set(defaults)
        assert defaults["height"] % family.division_factor == defaults["width"] % family.division_factor == 0


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_lora_target_is_a_linear_layer_of_the_published_network(family: Family) -> None:
    assert family.lora_targets
    for variant in (None, *family.variants):
        network = on_meta(family.name, "dit", variant)
        layers = {name for name, layer in network.named_modules() if type(layer) is nn.Linear}
        for target in family.lora_targets:
            found = set(find_targets(network, [target]))
            assert found, f"{target} is not there"
            assert found <= layers


def test_units_write_what_they_declare_and_read_what_is_there(tiny: BasePipeline) -> None:
    options = small(tiny.family)
    picture = Image.effect_noise((options["width"], options["height"]), 60).convert("RGB")
    mask = Image.new("L", picture.size, 255)
    tiny.scheduler.set_timesteps(2, dynamic_shift_len=6)
    shared = {**options, "seed": [1], **filled(tiny.family, picture), "inpaint_mask": mask}
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
    shared = {**options, "seed": [1], **filled(tiny.family, picture), "inpaint_mask": Image.new("L", picture.size)}
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
        difference = np.abs(pixels_of(made) - pixels_of(alone))
        # The same to about 1e-6 before rounding to pixels: hardly any of them may round the other way.
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01
    assert not np.array_equal(pixels_of(together[0]), pixels_of(together[1]))


def test_latents_of_training_decode_to_pictures_of_their_size(tiny: BasePipeline) -> None:
    options = small(tiny.family)
    picture = Image.new("RGB", (options["width"], options["height"]), "red")
    tiny.scheduler.set_timesteps(training=True)
    with torch.no_grad():
        rows = [row(tiny.family, picture, prompt="a", seed=1)] * 2
        shared, _, _ = tiny.run_units(*type(tiny).inputs_from_rows(rows))
        decoded = tiny.decode_latents(shared["input_latents"])
    frames = options.get("num_frames", 1)
    assert [[image.size for image in pictures_of(made)] for made in decoded] == [[picture.size] * frames] * 2
    assert shared["input_latents"].shape[1:] == tiny.latent_space.latent_shape(picture.height, picture.width, frames), (
        "the space says what the VAE makes"
    )


def test_training_inputs_lead_to_a_gradient(tiny: BasePipeline) -> None:
    options = small(tiny.family)
    rows = [
        row(tiny.family, Image.new("RGB", (options["width"], options["height"]), colour), prompt=colour, seed=seed)
        for seed, colour in enumerate(("red", "blue"))
    ]
    tiny.scheduler.set_timesteps(training=True)
    shared, posi, _ = tiny.run_units(*type(tiny).inputs_from_rows(rows))
    assert tiny.parts.denoisers
    for denoiser in tiny.parts.denoisers:
        dit = tiny.component(denoiser.name).requires_grad_(True)
        try:
            timestep = 1000 * torch.tensor([denoiser.low + 0.01, denoiser.high - 0.01])
            velocity = tiny.call_model_fn(timestep=timestep, **{**shared, **posi})
            assert velocity.shape == shared["input_latents"].shape
            velocity.square().mean().backward()
            assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in dit.parameters())
        finally:
            dit.zero_grad()
            dit.requires_grad_(False)


@pytest.mark.parametrize("family", EVERY_FAMILY, ids=lambda family: family.name)
def test_names_of_components_and_readers_are_one_of_a_kind_and_known_to_one_another(family: Family) -> None:
    names = [*(component.name for component in family.components), *(reader.name for reader in family.readers)]
    folders = [*(component.folder for component in family.components), *(reader.folder for reader in family.readers)]
    assert len(names) == len(set(names))
    assert len(folders) == len(set(folders))
    for reader in family.readers:
        assert set(reader.components) <= {component.name for component in family.components}
    for preset in family.presets:
        assert set(preset.files) <= set(names)
        optional = {reader.name for reader in family.readers if reader.optional}
        assert {*preset.files} & set(names[len(family.components) :]) <= optional, "the others are always there"


@pytest.mark.parametrize("family", EVERY_FAMILY, ids=lambda family: family.name)
def test_denoisers_cover_every_noise_level_once_and_are_there(family: Family) -> None:
    published = [preset for preset in family.presets if preset.model_id is not None]
    found = [family.parts(family.component_files(each), family.preset_index(each)) for each in published]
    for parts in (family.parts(), *found):
        denoisers = parts.denoisers
        assert {denoiser.name for denoiser in denoisers} <= set(parts.components)
        assert (denoisers[0].high, denoisers[-1].low) == (1, 0)
        assert all(above.low == below.high for above, below in itertools.pairwise(denoisers))
        assert all(denoiser.low < denoiser.high for denoiser in denoisers)
        assert [parts.denoiser_at(1000 * each.low) for each in denoisers] == list(denoisers)
    assert len(found) >= 1


def test_every_reader_of_a_model_can_be_loaded_and_belongs_to_what_is_loaded(tiny: BasePipeline) -> None:
    assert tiny.readers.folders
    for name in tiny.readers.folders:
        assert tiny.reader(name) is not None
        assert any(tiny.has(component) for component in tiny.family.reader(name).components)
    assert all(tiny.has(name) for name in tiny.components)
    assert set(tiny.parts.components) == set(tiny.components)


def test_sizes_and_frames_that_are_offered_can_be_worked_at(tiny: BasePipeline) -> None:
    defaults = tiny.family.defaults
    tiny.check_size(defaults["height"], defaults["width"], defaults.get("num_frames", 1))
    assert (tiny.latent_space.time_scale is None) == (tiny.family.time_division is None)
    with pytest.raises(UsageError, match="frames"):
        tiny.check_size(defaults["height"], defaults["width"], 3)
    more = tiny.tokens(defaults["height"], 2 * defaults["width"])
    assert more == 2 * tiny.tokens(defaults["height"], defaults["width"]) > 0
