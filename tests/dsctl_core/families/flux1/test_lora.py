"""A LoRA on FLUX.1: every format gives the same output, diffusers loads all of it, and it merges into the weights."""

from __future__ import annotations

import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsctl_core.commands.lora import convert
from dsctl_core.commands.merge_lora import merge
from dsctl_core.commands.train import train
from dsctl_core.families import load_family
from dsctl_core.lora import FORMATS, LoraLayer, load_lora, read_lora, save_lora
from dsctl_core.lora.layers import linear_shapes
from dsctl_core.lora.targets import find_targets
from dsctl_core.options import TrainOptions
from dsctl_core.options.lora_tools import LoraConvertOptions, MergeLoraOptions
from tests.dsctl_core.families.flux1.conftest import Pair, fresh, noisy, write_rows

FAMILY = load_family("flux1")
LAYOUT = FAMILY.original_names
DIFFUSERS_READS = ["diffusers", "kohya"]  # its reader wants a prefix, and knows none of other tools with dots
WIDTH = 32


def velocity(dit: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    shapes = {"hidden_states": (1, 6, 64), "encoder_hidden_states": (1, 5, 24), "pooled_projections": (1, 16)}
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    ids = {"txt_ids": torch.zeros(5, 3), "img_ids": torch.arange(18.0).view(6, 3)}
    with torch.no_grad():
        return dit(timestep=torch.tensor([0.5]), guidance=torch.tensor([3.5]), return_dict=False, **inputs, **ids)[0]


@pytest.fixture(scope="module")
def shapes(pairs: dict[str, Pair]) -> dict[str, tuple[int, int]]:
    return linear_shapes(fresh(pairs["dev"].folder, only=["dit"]).dit)


def random_layers(shapes: dict[str, tuple[int, int]], names: list[str]) -> dict[str, LoraLayer]:
    """A LoRA of two ranks, with scales that are not one."""
    generator = torch.Generator().manual_seed(5)
    made = {}
    for number, name in enumerate(names):
        (rows, columns), rank = shapes[name], 2 + number % 2
        down, up = (torch.randn(size, generator=generator) * 0.2 for size in ((rank, columns), (rows, rank)))
        made[name] = LoraLayer(down, up, 0.5 if number % 3 else 1.25)
    return made


@pytest.fixture(scope="module")
def layers(pairs: dict[str, Pair], shapes: dict[str, tuple[int, int]]) -> dict[str, LoraLayer]:
    """A LoRA on every layer of the family's list."""
    names = find_targets(fresh(pairs["dev"].folder, only=["dit"]).dit, FAMILY.lora_targets)
    assert len(names) == 2 * (12 + 5)
    assert "proj_out" not in names, "the last layer is not in a block"
    return random_layers(shapes, names)


def changed_by(pair: Pair, layers: dict[str, LoraLayer]) -> torch.Tensor:
    """What the model predicts with the updates in its weights."""
    dit = fresh(pair.folder, only=["dit"]).dit
    modules = dict(dit.named_modules())
    with torch.no_grad():
        for name, layer in layers.items():
            modules[name].weight += layer.scale * layer.up @ layer.down
    return velocity(dit)


def write(folder: Path, form: str, layers: dict[str, LoraLayer], shapes: Any) -> Path:
    path = folder / ("lora" if FORMATS[form].folder else "lora.safetensors")
    return save_lora(path, {"dit": layers}, {}, form=form, shapes={"dit": shapes}, original=LAYOUT)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("every", [False, True], ids=["targets", "every layer"])
def test_every_format_read_back_and_applied_gives_the_same_output(
    dev: Pair, tmp_path: Path, layers: Any, shapes: Any, form: str, every: bool
) -> None:
    layers = random_layers(shapes, list(shapes)) if every else layers
    path = write(tmp_path, form, layers, shapes)
    assert read_lora(path).format == form
    pipe = fresh(dev.folder, only=["dit"])
    before = velocity(pipe.dit)
    load_lora(pipe, path)
    expected = changed_by(dev, layers)
    torch.testing.assert_close(velocity(pipe.dit), expected, atol=2e-5, rtol=1e-5)
    assert (expected - before).abs().max() > 0.05


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let diffusers, which has the widths of the published model as numbers, split the layers of the tiny one."""
    from diffusers.loaders import lora_conversion_utils, lora_pipeline

    numbers = {3072: WIDTH, 12288: 4 * WIDTH}

    def narrowed(value: Any) -> Any:
        if isinstance(value, types.CodeType):
            return value.replace(co_consts=tuple(narrowed(each) for each in value.co_consts))
        return tuple(narrowed(each) for each in value) if isinstance(value, tuple) else numbers.get(value, value)

    converter = lora_conversion_utils._convert_kohya_flux_lora_to_diffusers
    assert narrowed(converter.__code__) != converter.__code__
    made = types.FunctionType(narrowed(converter.__code__), converter.__globals__)
    monkeypatch.setattr(lora_pipeline, "_convert_kohya_flux_lora_to_diffusers", made)


def load_into_diffusers(pair: Pair, path: Path) -> Any:
    official = type(pair.official).from_pretrained(pair.folder, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        official.load_lora_weights(str(path.parent), weight_name=path.name)
    return official.transformer


@pytest.mark.parametrize("form", DIFFUSERS_READS)
def test_diffusers_loads_all_layers_without_a_warning_and_gives_our_output(
    dev: Pair, narrow: None, tmp_path: Path, layers: Any, shapes: Any, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    transformer = load_into_diffusers(dev, write(tmp_path, form, layers, shapes))
    said = [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert not [each for each in said if "No LoRA keys associated to CLIPTextModel" not in each]
    loaded = {name for name, module in transformer.named_modules() if hasattr(module, "lora_A")}
    assert loaded == set(layers)
    torch.testing.assert_close(velocity(transformer), changed_by(dev, layers), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", DIFFUSERS_READS)
def test_a_lora_that_was_trained_here_loads_in_diffusers(dev: Pair, narrow: None, tmp_path: Path, form: str) -> None:
    noisy((48, 32)).save(tmp_path / "a.png")
    write_rows(tmp_path, {"image": "a.png", "prompt": "a picture"})
    options = {"model": str(dev.folder), "dataset_base_path": tmp_path, "lora_rank": 4, "learning_rate": 0.05}
    options |= {"max_steps": 2, "device": "cpu", "mixed_precision": "no", "lora_format": form}
    made = train(TrainOptions(**options, output_path=tmp_path / "out", cache=False)).checkpoint
    ours = fresh(dev.folder, only=["dit"])
    before = velocity(ours.dit)
    load_lora(ours, made)
    transformer = load_into_diffusers(dev, made)
    assert sum(hasattr(module, "lora_A") for module in transformer.modules()) == 34
    torch.testing.assert_close(velocity(transformer), velocity(ours.dit), atol=1e-5, rtol=1e-5)
    assert (velocity(ours.dit) - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("single_transformer_blocks.0.proj_mlp", "transformer."),
        ("transformer_blocks.0.img_mlp.net.2", "diffusion_model."),
        ("single_transformer_blocks.0.attn.to_qkv_mlp_proj", "diffusion_model."),
    ],
)
def test_a_lora_without_a_header_is_converted_under_the_prefix_of_its_own_model(
    tmp_path: Path, name: str, prefix: str
) -> None:
    layer = LoraLayer(torch.ones(2, 4), torch.ones(4, 2))
    layers = {name: layer, "transformer_blocks.0.attn.to_out.0": layer}
    path = save_lora(tmp_path / "a.safetensors", {"dit": layers}, {})
    convert(LoraConvertOptions(file=path, to="diffusers", output=tmp_path / "b.safetensors"))
    assert {each.split(".")[0] + "." for each in load_file(tmp_path / "b.safetensors")} == {prefix}


def test_what_kohya_and_comfyui_call_the_layers(tmp_path: Path, layers: Any, shapes: Any) -> None:
    for form, name in (
        ("kohya", "lora_unet_double_blocks_0_txt_attn_qkv.lora_down.weight"),
        ("kohya", "lora_unet_single_blocks_1_linear2.alpha"),
        ("comfyui", "diffusion_model.single_blocks.0.linear1.lora_up.weight"),
        ("comfyui", "diffusion_model.double_blocks.1.img_mlp.2.lora_down.weight"),
    ):
        (tmp_path / f"{form}{name}").mkdir()
        assert name in load_file(write(tmp_path / f"{form}{name}", form, layers, shapes))


@pytest.mark.parametrize("form", ["comfyui", "kohya"])
def test_a_fused_layer_of_another_tool_is_split_with_its_down_matrix_by_the_sizes_of_its_parts(
    dev: Pair, narrow: None, tmp_path: Path, form: str
) -> None:
    generator = torch.Generator().manual_seed(1)
    down, up = torch.randn(3, WIDTH, generator=generator), torch.randn(7 * WIDTH, 3, generator=generator)
    name = {"comfyui": "diffusion_model.single_blocks.1.linear1", "kohya": "lora_unet_single_blocks_1_linear1"}[form]
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.5)}
    save_file(tensors, tmp_path / "a.safetensors")
    block = "single_transformer_blocks.1"
    parts = {f"{block}.attn.to_{part}": up[WIDTH * n : WIDTH * (n + 1)] for n, part in enumerate("qkv")}
    parts[f"{block}.proj_mlp"] = up[3 * WIDTH :]
    pipe = fresh(dev.folder, only=["dit"])
    load_lora(pipe, tmp_path / "a.safetensors")
    expected = changed_by(dev, {each: LoraLayer(down, rows, 0.5) for each, rows in parts.items()})
    torch.testing.assert_close(velocity(pipe.dit), expected, atol=2e-5, rtol=1e-5)
    if form == "kohya":
        transformer = load_into_diffusers(dev, tmp_path / "a.safetensors")
        torch.testing.assert_close(velocity(transformer), expected, atol=2e-5, rtol=1e-5)


def test_the_halves_of_the_last_modulation_are_swapped_in_original_names(
    tmp_path: Path, shapes: dict[str, tuple[int, int]]
) -> None:
    name = "norm_out.linear"
    made = random_layers(shapes, [name, "transformer_blocks.0.attn.to_q"])
    scale, shift = made[name].up.chunk(2)
    written = load_file(write(tmp_path, "comfyui", made, shapes))
    up = written["diffusion_model.final_layer.adaLN_modulation.1.lora_up.weight"]
    assert torch.equal(up, torch.cat([shift, scale]))
    assert not torch.equal(up, made[name].up)


def test_a_lora_is_converted_there_and_back_and_merged_into_a_model_that_both_load(
    dev: Pair, tmp_path: Path, layers: Any, shapes: Any
) -> None:
    path = save_lora(tmp_path / "a.safetensors", {"dit": layers}, {}, shapes={"dit": shapes})
    kohya, back = tmp_path / "k.safetensors", tmp_path / "b.safetensors"
    convert(LoraConvertOptions(file=path, to="kohya", output=kohya))
    assert any("linear1" in name for name in load_file(kohya))
    convert(LoraConvertOptions(file=kohya, to="diffusers", output=back))
    merge(MergeLoraOptions(model=str(dev.folder), lora=(str(back),), output=tmp_path / "merged"))
    expected = changed_by(dev, layers)
    ours = fresh(tmp_path / "merged", only=["dit"]).dit
    official = type(dev.official).from_pretrained(tmp_path / "merged", dtype=torch.float32).transformer
    for network in (ours, official):
        torch.testing.assert_close(velocity(network), expected, atol=2e-5, rtol=1e-5)
