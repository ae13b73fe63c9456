"""A LoRA on FLUX.2: every format gives the same output, diffusers loads all of it, and it merges into the weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.commands.lora import convert
from dsctl_core.commands.merge_lora import merge
from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError
from dsctl_core.families import load_family
from dsctl_core.families.flux2.pipeline import Flux2Pipeline
from dsctl_core.lora import FORMATS, LoraLayer, load_lora, read_lora, save_lora
from dsctl_core.lora.layers import linear_shapes
from dsctl_core.options import TrainOptions
from dsctl_core.options.lora_tools import LoraConvertOptions, MergeLoraOptions
from tests.dsctl_core.families.flux2.conftest import Pair

FAMILY = load_family("flux2")
LAYOUT = FAMILY.original_names


def fresh(pair: Pair) -> Flux2Pipeline:
    return Flux2Pipeline.from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(path=pair.folder)], only=["dit"]
    )


def velocity(dit: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    guided = {"guidance": torch.tensor([4.0])} if dit.config.guidance_embeds else {"guidance": None}
    with torch.no_grad():
        return dit(
            hidden_states=torch.randn(1, 6, 128, generator=generator),
            timestep=torch.tensor([0.5]),
            encoder_hidden_states=torch.randn(1, 3, 48, generator=generator),
            txt_ids=torch.zeros(3, 4),
            img_ids=torch.arange(24.0).view(6, 4),
            return_dict=False,
            **guided,
        )[0]


@pytest.fixture(scope="module")
def shapes(pairs: dict[str, Pair]) -> dict[str, tuple[int, int]]:
    return linear_shapes(fresh(pairs["klein"]).dit)


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
    assert len(made) == 12 + 2 * 2
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
    pair: Pair, tmp_path: Path, layers: Any, shapes: Any, form: str
) -> None:
    path = write(tmp_path, form, layers, shapes)
    found = read_lora(path)
    assert found.format == form
    pipe = fresh(pair)
    before = velocity(pipe.dit)
    load_lora(pipe, path)
    expected = changed_by(pair, layers)
    torch.testing.assert_close(velocity(pipe.dit), expected, atol=1e-5, rtol=1e-5)
    assert (expected - before).abs().max() > 0.05


def test_all_formats_give_outputs_within_1e_6_of_each_other(
    klein: Pair, tmp_path: Path, layers: Any, shapes: Any
) -> None:
    outputs = []
    for form in FORMATS:
        (tmp_path / form).mkdir()
        pipe = fresh(klein)
        load_lora(pipe, write(tmp_path / form, form, layers, shapes))
        outputs.append(velocity(pipe.dit))
    assert len(outputs) > 2
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], atol=1e-6, rtol=1e-6)


def load_into_diffusers(pair: Pair, path: Path) -> Any:
    official = type(pair.official).from_pretrained(pair.folder, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        official.load_lora_weights(str(path.parent), weight_name=path.name)
    return official.transformer


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_diffusers_loads_all_layers_without_a_warning_and_gives_our_output(
    pair: Pair, tmp_path: Path, layers: Any, shapes: Any, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    transformer = load_into_diffusers(pair, write(tmp_path, form, layers, shapes))
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    loaded = {name for name, module in transformer.named_modules() if hasattr(module, "lora_A")}
    assert loaded == set(layers)
    torch.testing.assert_close(velocity(transformer), changed_by(pair, layers), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_a_lora_that_was_trained_here_loads_in_diffusers(pair: Pair, tmp_path: Path, form: str) -> None:
    from PIL import Image

    Image.effect_noise((48, 32), 60).convert("RGB").save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("image,prompt\na.png,a picture\n")
    options = {"model": str(pair.folder), "dataset_base_path": tmp_path, "lora_rank": 4, "learning_rate": 0.05}
    options |= {"max_steps": 3, "device": "cpu", "mixed_precision": "no", "lora_format": form}
    made = train(TrainOptions(**options, output_path=tmp_path / "out", cache=False)).checkpoint
    ours = fresh(pair)
    before = velocity(ours.dit)
    load_lora(ours, made)
    transformer = load_into_diffusers(pair, made)
    assert sum(hasattr(module, "lora_A") for module in transformer.modules()) == 16
    torch.testing.assert_close(velocity(transformer), velocity(ours.dit), atol=1e-5, rtol=1e-5)
    assert (velocity(ours.dit) - before).abs().max() > 1e-3


def test_what_kohya_and_comfyui_call_the_layers(tmp_path: Path, layers: Any, shapes: Any) -> None:
    for form, name in (
        ("kohya", "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"),
        ("kohya", "lora_unet_single_blocks_1_linear1.lora_up.weight"),
        ("comfyui", "diffusion_model.double_blocks.0.txt_attn.qkv.lora_up.weight"),
        ("comfyui", "diffusion_model.single_blocks.0.linear2.alpha"),
    ):
        (tmp_path / f"{form}{name}").mkdir()
        assert name in load_file(write(tmp_path / f"{form}{name}", form, layers, shapes))


def test_a_layer_that_the_format_has_no_name_for_is_refused_and_nothing_is_written(
    tmp_path: Path, layers: Any, shapes: Any
) -> None:
    rows, columns = shapes["norm_out.linear"]
    more = {**layers, "norm_out.linear": LoraLayer(torch.ones(1, columns), torch.ones(rows, 1))}
    (tmp_path / "out").mkdir()
    with pytest.raises(DsctlError, match="no name for the layer norm_out.linear"):
        write(tmp_path / "out", "kohya", more, shapes)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_lora_is_converted_there_and_back(klein: Pair, tmp_path: Path, layers: Any, shapes: Any) -> None:
    path = save_lora(tmp_path / "a.safetensors", {"dit": layers}, {"family": "flux2"}, shapes={"dit": shapes})
    kohya, back = tmp_path / "k.safetensors", tmp_path / "b.safetensors"
    convert(LoraConvertOptions(file=path, to="kohya", output=kohya))
    assert read_lora(kohya).format == "kohya"
    convert(LoraConvertOptions(file=kohya, to="diffusers", output=back))
    outputs = []
    for each in (path, back):
        pipe = fresh(klein)
        load_lora(pipe, each)
        outputs.append(velocity(pipe.dit))
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_a_lora_is_merged_into_a_model_that_both_load(
    pair: Pair, tmp_path: Path, layers: Any, shapes: Any, form: str
) -> None:
    path = write(tmp_path, form, layers, shapes)
    merge(MergeLoraOptions(model=str(pair.folder), lora=(str(path),), output=tmp_path / "merged"))
    merged = Flux2Pipeline.from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(path=tmp_path / "merged")]
    )
    expected = changed_by(pair, layers)
    torch.testing.assert_close(velocity(merged.dit), expected, atol=1e-5, rtol=1e-5)
    official = type(pair.official).from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(velocity(official.transformer), expected, atol=1e-5, rtol=1e-5)
