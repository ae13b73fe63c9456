"""Weights and LoRAs of Wan VACE in other layouts: single files, original folders, original names of LoRA layers."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsctl_core.checkpoint.load import find_component_paths, load_components, parts_of
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.checkpoint.single_file import identify_single_file
from dsctl_core.commands.models import show_model
from dsctl_core.errors import DsctlError
from dsctl_core.families import families, find_preset, load_family
from dsctl_core.families.resolve import resolve_model
from dsctl_core.families.wan_vace.original_names import ORIGINAL_NAMES
from dsctl_core.family import Family
from dsctl_core.lora import FORMATS, LoraLayer, load_lora, read_lora, save_lora
from dsctl_core.lora.layers import linear_shapes
from dsctl_core.lora.original import from_original, to_original
from dsctl_core.lora.targets import find_targets
from dsctl_core.options import ModelsShowOptions
from tests.dsctl_core.families.wan.conftest import Pair, load
from tests.dsctl_core.families.wan.conftest import random as draw
from tests.tiny_models import write_tiny_wan

OFFICIAL = load_family("wan-vace")
WEIGHTS = "diffusion_pytorch_model.safetensors"
# What has no layer of LoRA in the original: tables, norms and convolutions; `norm3` there is `norm2` here.
OTHERS = {
    "head.modulation": "scale_shift_table",
    "patch_embedding": "patch_embedding",
    "vace_patch_embedding": "vace_patch_embedding",
    **{
        f"{stack}.{{}}.{theirs}": f"{stack}.{{}}.{ours}"
        for stack in ("blocks", "vace_blocks")
        for theirs, ours in {
            "modulation": "scale_shift_table",
            "norm3": "norm2",
            "self_attn.norm_q": "attn1.norm_q",
            "self_attn.norm_k": "attn1.norm_k",
            "cross_attn.norm_q": "attn2.norm_q",
            "cross_attn.norm_k": "attn2.norm_k",
        }.items()
    },
}


def tiny_as_published() -> Family:
    """The family as if its tiny sizes were the published ones."""
    sizes = {name: OFFICIAL.tiny[name] for name in ("dit", "vae")}
    return dataclasses.replace(OFFICIAL, published=sizes, variants={})


def original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the transformer's tensors with the names of the original release."""
    names = {**ORIGINAL_NAMES.single, **OTHERS}
    known = {ours.format(n): theirs.format(n) for theirs, ours in names.items() for n in range(3)}
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


def original_folder(pair: Pair, folder: Path) -> Path:
    """Write the transformer as the original repositories have it: a config of their own, and original names."""
    folder.mkdir(parents=True)
    save_file(original(weights_of(pair)), folder / WEIGHTS)
    config = {"_class_name": "VaceWanModel", "model_type": "vace", "dim": 24, "vace_layers": [0, 2], "vace_in_dim": 96}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_names_of_the_original_are_those_that_diffusers_converts(pair: Pair) -> None:
    wanted = weights_of(pair)
    names = original(wanted)
    assert {"vace_blocks.0.before_proj.weight", "vace_blocks.1.after_proj.bias", "vace_blocks.1.norm3.weight"} <= set(
        names
    )
    converted = convert_wan_transformer_to_diffusers(dict(names))
    assert converted.keys() == wanted.keys()
    assert all(converted[name] is tensor for name, tensor in wanted.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_file_folder_and_original_folder_give_the_tensors_and_dtypes_of_diffusers(
    pair: Pair, tmp_path: Path, dtype: torch.dtype
) -> None:
    from diffusers import WanVACETransformer3DModel

    official: Any = WanVACETransformer3DModel.from_pretrained(pair.folder / "transformer", dtype=dtype)
    wanted = official.state_dict()
    save_file(weights_of(pair), tmp_path / "own.safetensors")
    prefixed = {f"model.diffusion_model.{name}": each for name, each in original(weights_of(pair)).items()}
    save_file(prefixed, tmp_path / "comfy.safetensors")
    files = (tmp_path / "own.safetensors", tmp_path / "comfy.safetensors")
    folder = original_folder(pair, tmp_path / "Wan2.1-VACE-1.3B")
    for path in (pair.folder / "transformer", *files, folder):
        name, model = loaded(tiny_as_published(), path, dtype)
        state = model.state_dict()
        assert name == "dit"
        assert state.keys() == wanted.keys()
        for key, tensor in wanted.items():
            assert torch.equal(state[key], tensor)
            assert state[key].dtype == tensor.dtype
    assert resolve_model(model_paths=json.dumps([str(folder)])).family.name == "wan-vace"


def test_original_folders_of_two_denoisers_are_told_by_their_names(pair: Pair, tmp_path: Path) -> None:
    family = tiny_as_published()
    for name, component in (("high_noise_model", "dit"), ("low_noise_model", "dit_2")):
        folder = original_folder(pair, tmp_path / name)
        assert set(find_component_paths(family, [ModelConfig(folder)]).components) == {component}
    with pytest.raises(DsctlError, match="nothing says at which noise levels the dit_2 of Wan VACE acts"):
        loaded(family, tmp_path / "low_noise_model")


def test_the_family_tells_its_files_from_those_of_wan(pair: Pair, tmp_path: Path) -> None:
    plain = write_tiny_wan(tmp_path / "wan") / "transformer" / WEIGHTS
    save_file(original(weights_of(pair)), tmp_path / "vace.safetensors")
    save_file(load_file(plain), tmp_path / "plain.safetensors")
    for file, wanted in (("vace", "wan-vace"), ("plain", "wan")):
        both = [families()[name] for name in ("wan", "wan-vace")]
        family, component = identify_single_file(both, tmp_path / f"{file}.safetensors")
        assert (family.name, component.name) == (wanted, "dit")
    places = find_component_paths(OFFICIAL, [ModelConfig(pair.folder / "transformer")])
    assert parts_of(OFFICIAL, places).division_factor == 16


def test_presets_say_how_many_denoisers_there_are() -> None:
    found = {preset.name: OFFICIAL.preset_parts(preset) for preset in OFFICIAL.presets}
    assert list(found) == ["wan2.1-vace-1.3b", "wan2.1-vace-14b", "wan2.2-vace-fun-a14b"]
    assert [len(parts.denoisers) for parts in found.values()] == [1, 1, 2]
    assert found["wan2.2-vace-fun-a14b"].denoisers[0].low == 0.875
    shown = [show_model(ModelsShowOptions(name=name))["own_part"] for name in (*found, "wan2.1-t2v-1.3b")]
    assert shown == [["dit.vace_blocks", "dit.vace_patch_embedding"]] * 3 + [None]
    sizes = [OFFICIAL.sizes("dit", find_preset(name)[1].variant) for name in found]
    assert [len(each["vace_layers"]) for each in sizes] == [15, 8, 8]


def test_the_cache_of_a_clip_at_480p_is_reckoned_with_what_it_follows() -> None:
    assert OFFICIAL.cache_bytes is not None
    found = OFFICIAL.cache_bytes(OFFICIAL.sizes("dit", "1.3b"), 832, 480, 81, 400)
    # 16 and 32 channels in bfloat16, and 64 of a byte, for 21 x 60 x 104 latents; a prompt of 101 tokens.
    assert found == ((2 * (16 + 32) + 64) * 21 * 60 * 104, 2 * 101 * 4096)


def layers_on(dit: Any, targets: list[str]) -> dict[str, LoraLayer]:
    """A LoRA on the layers that match `targets`, with scales that are not one."""
    generator, made, shapes = torch.Generator().manual_seed(5), {}, linear_shapes(dit)
    for number, name in enumerate(find_targets(dit, targets)):
        rows, columns = shapes[name]
        down, up = (torch.randn(size, generator=generator) * 0.2 for size in ((2, columns), (rows, 2)))
        made[name] = LoraLayer(down, up, 0.5 if number % 3 else 1.25)
    return made


def velocity(dit: Any) -> Tensor:
    latents, text, context = draw(1, 16, 2, 4, 4), draw(1, 512, 16, seed=1), draw(1, 96, 2, 4, 4, seed=2)
    with torch.no_grad():
        return dit(latents, torch.tensor([900.0]), text, control_hidden_states=context)[0]


def changed_by(dit: Any, layers: dict[str, LoraLayer]) -> Tensor:
    """What the model predicts with the updates in its weights."""
    changed = copy.deepcopy(dit)
    modules: dict[str, Any] = dict(changed.named_modules())
    with torch.no_grad():
        for name, layer in layers.items():
            modules[name].weight += layer.scale * layer.up @ layer.down
    return velocity(changed)


TARGETS = {"the part": list(OFFICIAL.lora_targets), "main blocks": ["blocks"], "both": ["vace_blocks", "blocks"]}


def test_default_targets_are_in_the_part(pair: Pair) -> None:
    found = {name: find_targets(pair.ours.dit, targets) for name, targets in TARGETS.items()}
    assert [len(each) for each in found.values()] == [2 * 10, 3 * 10, 2 * 10 + 3 + 3 * 10]
    assert all(name.startswith("vace_blocks.") for name in found["the part"])
    assert all(name.startswith("blocks.") for name in found["main blocks"])


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_read_back_gives_the_same_output(
    pair: Pair, tmp_path: Path, form: str, targets: list[str]
) -> None:
    pipe = load(pair.folder, only=["dit"])
    layers = layers_on(pipe.dit, targets)
    target = tmp_path / ("lora" if FORMATS[form].folder else "lora.safetensors")
    shapes = {"dit": linear_shapes(pipe.dit)}
    path = save_lora(target, {"dit": layers}, {}, form=form, shapes=shapes, original=ORIGINAL_NAMES, unnamed="dit")
    assert read_lora(path, ("dit",), [ORIGINAL_NAMES]).format == form
    before, expected = velocity(pipe.dit), changed_by(pipe.dit, layers)
    load_lora(pipe, path)
    torch.testing.assert_close(velocity(pipe.dit), expected, atol=1e-5, rtol=1e-5)
    assert (expected - before).abs().max() > 0.05


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_diffusers_loads_all_layers_of_its_format_and_gives_our_output(
    pair: Pair, tmp_path: Path, targets: list[str]
) -> None:
    dit = pair.ours.dit
    layers = layers_on(dit, targets)
    shapes = {"dit": linear_shapes(dit)}
    path = tmp_path / "lora.safetensors"
    save_lora(path, {"dit": layers}, {}, form="diffusers", shapes=shapes, original=ORIGINAL_NAMES, unnamed="dit")
    official = copy.deepcopy(pair.official)
    official.load_lora_weights(str(tmp_path), weight_name=path.name)
    found = {name for name, module in official.transformer.named_modules() if hasattr(module, "lora_A")}
    assert found == set(layers)
    torch.testing.assert_close(velocity(official.transformer), changed_by(dit, layers), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("flat", [False, True])
def test_every_layer_has_the_name_that_comfyui_and_musubi_know(pair: Pair, flat: bool) -> None:
    dit = pair.ours.dit
    layers = layers_on(dit, list(linear_shapes(dit)))
    names = to_original(layers, ORIGINAL_NAMES, "comfyui")
    assert {
        "vace_blocks.0.before_proj",
        "vace_blocks.1.self_attn.q",
        "vace_blocks.1.ffn.2",
        "blocks.2.cross_attn.o",
    } <= (set(names))
    converted = convert_wan_transformer_to_diffusers({f"{name}.weight": name for name in names})
    assert {name.removesuffix(".weight") for name in converted} == set(layers)
    shown = {name.replace(".", "_") if flat else name: layer for name, layer in names.items()}
    back = from_original(shown, [ORIGINAL_NAMES], flat=flat)
    assert set(back) == set(layers)


def test_a_lora_of_wan_fits_the_main_blocks_and_one_on_the_part_does_not_fit_wan(pair: Pair, tmp_path: Path) -> None:
    wan = load_family("wan")
    plain = load(write_tiny_wan(tmp_path / "wan"))
    layers = layers_on(plain.dit, list(wan.lora_targets))
    for form in ("diffusers", "comfyui", "kohya"):
        path = tmp_path / f"{form}.safetensors"
        about = {"family": "wan", "component": "dit"}
        save_lora(path, {"dit": layers}, about, form=form, original=wan.original_names, unnamed="dit")
        pipe = load(pair.folder, only=["dit"])
        expected = changed_by(pipe.dit, layers)
        load_lora(pipe, path)
        torch.testing.assert_close(velocity(pipe.dit), expected, atol=1e-5, rtol=1e-5)
    own = layers_on(pair.ours.dit, list(OFFICIAL.lora_targets))
    path, about = tmp_path / "part.safetensors", {"family": "wan-vace", "component": "dit"}
    save_lora(path, {"dit": own}, about, form="diffusers", original=ORIGINAL_NAMES, unnamed="dit")
    with pytest.raises(DsctlError, match="is for another model: its header names wan-vace"):
        load_lora(plain, path)
