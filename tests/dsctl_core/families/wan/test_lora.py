"""A LoRA on Wan: every format gives the same output, diffusers loads all of it, and one of another model is refused."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import load_file, save_file

from dsctl_core.commands.lora import convert
from dsctl_core.errors import DsctlError
from dsctl_core.families import load_family
from dsctl_core.lora import FORMATS, LoraLayer, fuse_lora, load_lora, read_lora, save_lora
from dsctl_core.lora.layers import linear_shapes
from dsctl_core.lora.original import from_original, to_original
from dsctl_core.options.lora_tools import LoraConvertOptions
from tests.dsctl_core.families.wan.conftest import KINDS, Pair, Pairs, load
from tests.dsctl_core.families.wan.conftest import random as draw

FAMILY = load_family("wan")
LAYOUT = FAMILY.original_names
assert LAYOUT is not None
SHOWN_TO_BOTH = ("diffusers", "comfyui", "kohya")  # the formats that diffusers' reader of Wan files knows


def layers_on(dit: Any, every: bool = False) -> dict[str, LoraLayer]:
    """A LoRA on the layers of the family's list, or on every layer with a name, with scales that are not one."""
    generator, made = torch.Generator().manual_seed(5), {}
    for number, (name, (rows, columns)) in enumerate(sorted(linear_shapes(dit).items())):
        if every or any(name.endswith(f".{target}") for target in FAMILY.lora_targets):
            down, up = (torch.randn(size, generator=generator) * 0.2 for size in ((2, columns), (rows, 2)))
            made[name] = LoraLayer(down, up, 0.5 if number % 3 else 1.25)
    assert len(made) >= 20
    return made


def write(
    path: Path,
    form: str,
    layers: dict[str, LoraLayer],
    dit: Any,
    component: str = "dit",
    about: dict[str, str] | None = None,
) -> Path:
    target = path / ("lora" if FORMATS[form].folder else "lora.safetensors")
    shapes = {component: linear_shapes(dit)}
    return save_lora(
        target, {component: layers}, about or {}, form=form, shapes=shapes, original=LAYOUT, unnamed=component
    )


def velocity(pair: Pair, dit: Any) -> torch.Tensor:
    config = dit.config
    seen = None if config.image_dim is None else draw(2 if config.pos_embed_seq_len else 1, 257, 8, seed=2)
    with torch.no_grad():
        return dit(draw(1, config.in_channels, 2, 4, 4), torch.tensor([900.0]), draw(1, 512, 16, seed=1), seen)[0]


def changed_by(pair: Pair, dit: Any, layers: dict[str, LoraLayer]) -> torch.Tensor:
    """What the model predicts with the updates in its weights."""
    changed = copy.deepcopy(dit)
    modules: dict[str, Any] = dict(changed.named_modules())
    with torch.no_grad():
        for name, layer in layers.items():
            modules[name].weight += layer.scale * layer.up @ layer.down
    return velocity(pair, changed)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_read_back_and_applied_gives_the_same_output(pairs: Pairs, tmp_path: Path, form: str) -> None:
    pair = pairs["i2v"]
    pipe = load(pair.folder, only=["dit"])
    layers = layers_on(pipe.dit, every=True)
    path = write(tmp_path, form, layers, pipe.dit)
    assert read_lora(path, ("dit",), [LAYOUT]).format == form
    before, expected = velocity(pair, pipe.dit), changed_by(pair, pipe.dit, layers)
    load_lora(pipe, path)
    torch.testing.assert_close(velocity(pair, pipe.dit), expected, atol=1e-5, rtol=1e-5)
    assert (expected - before).abs().max() > 0.05


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
@pytest.mark.parametrize("form", SHOWN_TO_BOTH)
def test_diffusers_loads_all_layers_without_a_warning_and_gives_our_output(
    pairs: Pairs, tmp_path: Path, kind: str, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    pair = pairs[kind]
    pipe = load(pair.folder, only=["dit"])
    layers = layers_on(pipe.dit)
    path = write(tmp_path, form, layers, pipe.dit)
    official = copy.deepcopy(pair.official)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        official.load_lora_weights(str(tmp_path), weight_name=path.name)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    loaded = {name for name, module in official.transformer.named_modules() if hasattr(module, "lora_A")}
    assert set(layers) <= loaded
    expected = changed_by(pair, pipe.dit, layers)
    torch.testing.assert_close(velocity(pair, official.transformer), expected, atol=1e-5, rtol=1e-5)


def test_what_comfyui_and_musubi_call_the_layers(pairs: Pairs, tmp_path: Path) -> None:
    dit = pairs["i2v"].ours.dit
    layers = layers_on(dit, every=True)
    found: dict[str, set[str]] = {}
    for form in SHOWN_TO_BOTH:
        (tmp_path / form).mkdir()
        found[form] = set(load_file(write(tmp_path / form, form, layers, dit)))
    assert {
        "lora_unet_blocks_0_self_attn_q.lora_down.weight",
        "lora_unet_blocks_1_cross_attn_k_img.lora_up.weight",
        "lora_unet_blocks_1_ffn_2.alpha",
    } <= found["kohya"]
    assert {
        "diffusion_model.blocks.0.cross_attn.o.lora_up.weight",
        "diffusion_model.blocks.1.ffn.0.alpha",
        "diffusion_model.img_emb.proj.1.lora_down.weight",
        "diffusion_model.head.head.lora_down.weight",
    } <= found["comfyui"]
    assert "transformer.blocks.0.attn1.to_out.0.lora_A.weight" in found["diffusers"]


@pytest.mark.parametrize("flat", [False, True])
def test_every_layer_has_an_original_name_which_is_that_of_diffusers_conversion(pairs: Pairs, flat: bool) -> None:
    dit = pairs["flf2v"].ours.dit
    layers = layers_on(dit, every=True)
    original = to_original(layers, LAYOUT, "comfyui")
    assert len(original) == len(layers) == len(linear_shapes(dit))
    converted = convert_wan_transformer_to_diffusers({f"{name}.weight": name for name in original})
    assert {name.removesuffix(".weight") for name in converted} == set(layers)
    shown = {name.replace(".", "_") if flat else name: layer for name, layer in original.items()}
    back = from_original(shown, [LAYOUT], flat=flat)
    assert set(back) == set(layers)
    assert all(back[name] is layer for name, layer in layers.items())


def test_a_lora_is_converted_there_and_back(pairs: Pairs, tmp_path: Path) -> None:
    dit = pairs["t2v"].ours.dit
    layers = layers_on(dit)
    path = write(tmp_path, "diffusers", layers, dit, about={"family": "wan", "component": "dit"})
    musubi, back = tmp_path / "m.safetensors", tmp_path / "b.safetensors"
    convert(LoraConvertOptions(file=path, to="kohya", output=musubi))
    assert read_lora(musubi, ("dit",), [LAYOUT]).format == "kohya"
    convert(LoraConvertOptions(file=musubi, to="diffusers", output=back))
    assert set(load_file(back)) == set(load_file(path))
    found = read_lora(back).components["dit"]
    for name, layer in layers.items():
        update = found[name].scale * found[name].up @ found[name].down
        torch.testing.assert_close(update, layer.scale * layer.up @ layer.down, atol=1e-6, rtol=1e-6)


def test_the_lora_of_a_file_without_a_header_is_that_of_wan_by_its_names(pairs: Pairs, tmp_path: Path) -> None:
    dit = pairs["t2v"].ours.dit
    path = write(tmp_path, "diffusers", layers_on(dit), dit)
    save_file(load_file(path), tmp_path / "foreign.safetensors")
    convert(LoraConvertOptions(file=tmp_path / "foreign.safetensors", to="comfyui", output=tmp_path / "c.safetensors"))
    assert "diffusion_model.blocks.0.self_attn.q.lora_down.weight" in load_file(tmp_path / "c.safetensors")


@pytest.mark.parametrize("form", SHOWN_TO_BOTH)
def test_a_lora_of_another_generation_or_expert_is_refused_with_a_word(pairs: Pairs, tmp_path: Path, form: str) -> None:
    old, new = pairs["i2v"], pairs["i2v-a14b"]
    layers = layers_on(old.ours.dit, every=True)
    kept = {name: layer for name, layer in layers.items() if "attn" in name}
    path = write(tmp_path, form, kept, old.ours.dit)
    pipe = load(new.folder)
    for attempt in (lambda: load_lora(pipe, path), lambda: fuse_lora(pipe, path, "dit_2")):
        with pytest.raises(
            DsctlError, match="is for another model: 4 of its 20 layers are not in this one.*add_k_proj"
        ):
            attempt()
    low = layers_on(pipe.dit_2)
    (tmp_path / "low").mkdir()
    path = write(tmp_path / "low", form, low, pipe.dit_2, "dit_2", {"family": "wan", "component": "dit_2"})
    with pytest.raises(DsctlError, match="has no layers for the dit, only for dit_2"):
        fuse_lora(pipe, path, "dit")
    before = pipe.dit.blocks[0].attn1.to_q.weight.clone()
    load_lora(pipe, path)
    assert any("lora" in name for name, _ in pipe.dit_2.named_parameters())
    assert torch.equal(pipe.dit.blocks[0].attn1.to_q.weight, before)


def test_default_targets_are_the_layers_of_the_blocks_in_every_kind(pairs: Pairs) -> None:
    from dsctl_core.lora.targets import find_targets

    found = [find_targets(pairs[kind].ours.dit, FAMILY.lora_targets) for kind in KINDS]
    assert [len(names) for names in found] == [20] * 6
    assert all(name.startswith("blocks.") for names in found for name in names)
