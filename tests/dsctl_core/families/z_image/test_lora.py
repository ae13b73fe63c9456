"""A LoRA on Z-Image: every format gives the same output, diffusers loads all of it, and it merges into the weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.commands.lora import convert
from dsctl_core.commands.merge_lora import merge
from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError
from dsctl_core.families import load_family
from dsctl_core.families.z_image.pipeline import ZImagePipeline
from dsctl_core.lora import FORMATS, LoraLayer, load_lora, read_lora, save_lora
from dsctl_core.lora.layers import linear_shapes
from dsctl_core.options import TrainOptions
from dsctl_core.options.lora_tools import LoraConvertOptions, MergeLoraOptions
from tests.dsctl_core.families.z_image.conftest import Pair, noisy, write_rows

FAMILY = load_family("z-image")
LAYOUT = FAMILY.original_names
DIFFUSERS_READS = ["diffusers", "kohya", "diffsynth"]  # its reader knows no fused layers with dots in their names


def fresh(pair: Pair) -> ZImagePipeline:
    return ZImagePipeline.from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(path=pair.folder)], only=["dit"]
    )


def velocity(dit: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    image = torch.randn(16, 1, 4, 6, generator=generator)
    text = torch.randn(5, dit.config.cap_feat_dim, generator=generator)
    with torch.no_grad():
        return dit([image], torch.tensor([0.5]), [text], return_dict=False)[0][0]


@pytest.fixture(scope="module")
def shapes(pairs: dict[str, Pair]) -> dict[str, tuple[int, int]]:
    return linear_shapes(fresh(pairs["base"]).dit)


@pytest.fixture(scope="module")
def layers(shapes: dict[str, tuple[int, int]]) -> dict[str, LoraLayer]:
    """A LoRA on every layer of the family's list, of two ranks, with scales that are not one."""
    generator = torch.Generator().manual_seed(5)
    made = {}
    for number, (name, (rows, columns)) in enumerate(sorted(shapes.items())):
        if any(name.endswith(f".{target}") for target in FAMILY.lora_targets):
            rank = 2 + number % 2
            down, up = (torch.randn(size, generator=generator) * 0.2 for size in ((rank, columns), (rows, rank)))
            made[name] = LoraLayer(down, up, 0.5 if number % 3 else 1.25)
    assert len(made) == 7 * (2 + 2)
    return made


def changed_by(pair: Pair, layers: dict[str, LoraLayer]) -> torch.Tensor:
    """What the model predicts with the updates in its weights."""
    dit = fresh(pair).dit
    modules = dict(dit.named_modules())
    with torch.no_grad():
        for name, layer in layers.items():
            modules[name].weight += layer.scale * layer.up @ layer.down
    return velocity(dit)


def write(folder: Path, form: str, layers: dict[str, LoraLayer], shapes: Any) -> Path:
    path = folder / ("lora" if FORMATS[form].folder else "lora.safetensors")
    return save_lora(path, {"dit": layers}, {}, form=form, shapes={"dit": shapes}, original=LAYOUT)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_read_back_and_applied_gives_the_same_output(
    base: Pair, tmp_path: Path, layers: Any, shapes: Any, form: str
) -> None:
    path = write(tmp_path, form, layers, shapes)
    assert read_lora(path).format == form
    pipe = fresh(base)
    before = velocity(pipe.dit)
    load_lora(pipe, path)
    expected = changed_by(base, layers)
    torch.testing.assert_close(velocity(pipe.dit), expected, atol=1e-5, rtol=1e-5)
    assert (expected - before).abs().max() > 0.05


def load_into_diffusers(pair: Pair, path: Path) -> Any:
    official = type(pair.official).from_pretrained(pair.folder, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        official.load_lora_weights(str(path.parent), weight_name=path.name)
    return official.transformer


@pytest.mark.parametrize("form", DIFFUSERS_READS)
def test_diffusers_loads_all_layers_without_a_warning_and_gives_our_output(
    base: Pair, tmp_path: Path, layers: Any, shapes: Any, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    transformer = load_into_diffusers(base, write(tmp_path, form, layers, shapes))
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    loaded = {name for name, module in transformer.named_modules() if hasattr(module, "lora_A")}
    assert loaded == set(layers)
    torch.testing.assert_close(velocity(transformer), changed_by(base, layers), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", DIFFUSERS_READS)
def test_a_lora_that_was_trained_here_loads_in_diffusers(base: Pair, tmp_path: Path, form: str) -> None:
    noisy((48, 32)).save(tmp_path / "a.png")
    write_rows(tmp_path, {"image": "a.png", "prompt": "a picture"})
    options = {"model": str(base.folder), "dataset_base_path": tmp_path, "lora_rank": 4, "learning_rate": 0.05}
    options |= {"max_steps": 2, "device": "cpu", "mixed_precision": "no", "lora_format": form}
    made = train(TrainOptions(**options, output_path=tmp_path / "out", cache=False)).checkpoint
    ours = fresh(base)
    before = velocity(ours.dit)
    load_lora(ours, made)
    transformer = load_into_diffusers(base, made)
    assert sum(hasattr(module, "lora_A") for module in transformer.modules()) == 28
    torch.testing.assert_close(velocity(transformer), velocity(ours.dit), atol=1e-5, rtol=1e-5)
    assert (velocity(ours.dit) - before).abs().max() > 1e-3


def test_what_kohya_and_comfyui_call_the_layers(tmp_path: Path, layers: Any, shapes: Any) -> None:
    for form, name in (
        ("kohya", "lora_unet_layers_0_attention_qkv.lora_down.weight"),
        ("kohya", "lora_unet_context_refiner_0_feed_forward_w1.lora_up.weight"),
        ("comfyui", "diffusion_model.noise_refiner.0.attention.qkv.lora_up.weight"),
        ("comfyui", "diffusion_model.layers.1.attention.out.alpha"),
    ):
        (tmp_path / f"{form}{name}").mkdir()
        assert name in load_file(write(tmp_path / f"{form}{name}", form, layers, shapes))


@pytest.mark.parametrize("form", ["comfyui", "kohya"])
def test_a_fused_layer_of_another_tool_is_split_into_three_with_its_down_matrix(
    base: Pair, tmp_path: Path, form: str
) -> None:
    generator = torch.Generator().manual_seed(1)
    down, up = torch.randn(2, 32, generator=generator), torch.randn(96, 2, generator=generator)
    name = {"comfyui": "diffusion_model.layers.1.attention.qkv", "kohya": "lora_unet_layers_1_attention_qkv"}[form]
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "a.safetensors")
    parts = {f"layers.1.attention.to_{p}": LoraLayer(down, up[32 * n : 32 * n + 32], 0.5) for n, p in enumerate("qkv")}
    found = read_lora(tmp_path / "a.safetensors", ("dit",), [LAYOUT]).components["dit"]
    assert list(found) == list(parts)
    assert all(torch.equal(layer.down, down) for layer in found.values())
    pipe = fresh(base)
    load_lora(pipe, tmp_path / "a.safetensors")
    torch.testing.assert_close(velocity(pipe.dit), changed_by(base, parts), atol=1e-5, rtol=1e-5)
    if form in DIFFUSERS_READS:
        transformer = load_into_diffusers(base, tmp_path / "a.safetensors")
        torch.testing.assert_close(velocity(transformer), velocity(pipe.dit), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "transformer.", ""])
def test_a_file_with_the_names_of_diffusers_is_read_as_it_is(
    base: Pair, tmp_path: Path, layers: Any, prefix: str
) -> None:
    tensors = {}
    for name, layer in layers.items():
        tensors[f"{prefix}{name}.lora_A.weight"] = layer.down
        tensors[f"{prefix}{name}.lora_B.weight"] = layer.up * layer.scale
    save_file(tensors, tmp_path / "a.safetensors")
    pipe = fresh(base)
    load_lora(pipe, tmp_path / "a.safetensors")
    torch.testing.assert_close(velocity(pipe.dit), changed_by(base, layers), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kept", ["", "feed_forward"])
def test_flat_names_of_split_projections_are_read_too(base: Pair, tmp_path: Path, layers: Any, kept: str) -> None:
    tensors = {}
    layers = {name: layer for name, layer in layers.items() if kept in name}
    assert len(layers) >= 12
    for name, layer in layers.items():
        flat = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{flat}.lora_down.weight": layer.down, f"{flat}.lora_up.weight": layer.up}
        tensors[f"{flat}.alpha"] = torch.tensor(layer.scale * layer.rank)
    save_file(tensors, tmp_path / "a.safetensors")
    pipe = fresh(base)
    load_lora(pipe, tmp_path / "a.safetensors")
    torch.testing.assert_close(velocity(pipe.dit), changed_by(base, layers), atol=1e-5, rtol=1e-5)


def test_every_linear_layer_of_the_network_has_an_original_name(tmp_path: Path, shapes: Any) -> None:
    every = {name: LoraLayer(torch.ones(1, columns), torch.ones(rows, 1)) for name, (rows, columns) in shapes.items()}
    assert len(every) > 28
    for form in ("kohya", "comfyui"):
        (tmp_path / form).mkdir()
        found = read_lora(write(tmp_path / form, form, every, shapes), ("dit",), [LAYOUT])
        assert set(found.components["dit"]) == set(every)


def test_a_layer_of_no_model_is_refused_and_nothing_is_written(tmp_path: Path, layers: Any, shapes: Any) -> None:
    more = {**layers, "layers.0.other": LoraLayer(torch.ones(1, 2), torch.ones(2, 1))}
    (tmp_path / "out").mkdir()
    with pytest.raises(DsctlError, match="no name for the layer layers.0.other"):
        write(tmp_path / "out", "kohya", more, {**shapes, "layers.0.other": (2, 2)})
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("header", [{"family": "z-image"}, {}], ids=["named", "by its layers"])
def test_a_lora_is_converted_there_and_back(
    base: Pair, tmp_path: Path, layers: Any, shapes: Any, header: dict[str, str]
) -> None:
    path = save_lora(tmp_path / "a.safetensors", {"dit": layers}, header, shapes={"dit": shapes})
    kohya, back = tmp_path / "k.safetensors", tmp_path / "b.safetensors"
    convert(LoraConvertOptions(file=path, to="kohya", output=kohya))
    assert any("attention_qkv" in name for name in load_file(kohya))
    convert(LoraConvertOptions(file=kohya, to="diffusers", output=back))
    outputs = []
    for each in (path, back):
        pipe = fresh(base)
        load_lora(pipe, each)
        outputs.append(velocity(pipe.dit))
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("form", ["diffusers", "comfyui"])
def test_a_lora_is_merged_into_a_model_that_both_load(
    base: Pair, tmp_path: Path, layers: Any, shapes: Any, form: str
) -> None:
    path = write(tmp_path, form, layers, shapes)
    merge(MergeLoraOptions(model=str(base.folder), lora=(str(path),), output=tmp_path / "merged"))
    merged = ZImagePipeline.from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(path=tmp_path / "merged")]
    )
    expected = changed_by(base, layers)
    torch.testing.assert_close(velocity(merged.dit), expected, atol=1e-5, rtol=1e-5)
    official = type(base.official).from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(velocity(official.transformer), expected, atol=1e-5, rtol=1e-5)
    assert merged.scheduler.schedule == base.ours.scheduler.schedule
