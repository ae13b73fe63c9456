"""Qwen-Image-Layered in training: target and convention, the loss and its gradients, rows, and the two stages."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.qwen_image_layered.pipeline import QwenImageLayeredPipeline
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.lora.layers import tuner_layers
from dsctl_core.losses import FlowMatchSFTLoss
from dsctl_core.options import CacheOptions, TrainOptions
from dsctl_core.training.model.task_module import TaskModule
from tests.dsctl_core.families.qwen_image_layered.conftest import Pair, layer, rgba

LAYERS = [layer(96, 64, seed) for seed in (1, 2)]
ROW = {"layers": LAYERS, "prompt": "a fox in the snow", "seed": 4}
NOISE = torch.randn(1, 3, 16, 8, 12, generator=torch.Generator().manual_seed(5))
TIMESTEP = torch.tensor([812.5])


def over(lower: Image.Image, upper: Image.Image) -> np.ndarray:
    """Porter and Duff's "over" of two RGBA images, in float."""
    below, above = (np.asarray(each, dtype=np.float64) / 255 for each in (lower, upper))
    alpha = above[..., 3:] + below[..., 3:] * (1 - above[..., 3:])
    colour = above[..., :3] * above[..., 3:] + below[..., :3] * below[..., 3:] * (1 - above[..., 3:])
    return np.concatenate([colour / np.maximum(alpha, 1e-9), alpha], axis=-1) * 255


def clean_latents(pair: Pair, whole: Image.Image) -> Tensor:
    """Diffusers' latents (1, 3, 16, h, w) of the whole picture and of the layers."""
    with torch.no_grad():
        return torch.cat([pair.official._encode_vae_image(rgba(p), None) for p in (whole, *LAYERS)], 2).transpose(1, 2)


def test_a_network_that_knows_the_layers_has_no_loss_and_leads_diffusers_to_them(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_layered

    monkeypatch.setattr(pipeline_qwenimage_layered, "calculate_dimensions", lambda *_: (96, 64))
    whole = Image.alpha_composite(*LAYERS)
    clean = pair.official._pack_latents(clean_latents(pair, whole), 1, 16, 8, 12, 3)
    count = clean.shape[1]

    def knows(hidden_states: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        velocity = (hidden_states[:, :count] - clean) / timestep[:, None, None]
        return (torch.cat([velocity, torch.full_like(hidden_states[:, count:], 7.0)], dim=1),)

    for network in (pair.ours.dit, pair.official.transformer):
        monkeypatch.setattr(network, "forward", knows)
    pair.ours.scheduler.set_timesteps(training=True)
    with torch.no_grad():
        shared, posi, _ = pair.ours.run_units(*pair.ours.inputs_from_rows([ROW], ["layers"]))
        for timestep in (3.0, 500.0, 997.0):
            loss = FlowMatchSFTLoss(pair.ours, **shared, **posi, timestep=torch.tensor([timestep]))
            assert float(loss) < 1e-8
        wrong = {**shared, "input_latents": shared["input_latents"].flip(1)}
        assert float(FlowMatchSFTLoss(pair.ours, **wrong, **posi, timestep=torch.tensor([500.0]))) > 1e-2
        (made,) = pair.official(
            whole,
            prompt="a",
            true_cfg_scale=1.0,
            layers=2,
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(1),
            output_type="pt",
        ).images
        wanted = pair.ours.decode_pixels(clean_latents(pair, whole)[:, 1:], False, None, None)[0] * 0.5 + 0.5
    torch.testing.assert_close(made, wanted, atol=1e-4, rtol=0)


def our_step(pair: Pair) -> tuple[dict[str, Tensor], Tensor]:
    pipe = QwenImageLayeredPipeline.from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(path=pair.folder)]
    )
    module = TaskModule(pipe, "sft", lora_base_model="dit", lora_rank=4, lora_alpha=2)
    for index, each in enumerate(tuner_layers(pipe.dit).values()):
        torch.nn.init.normal_(each.lora_B["default"].weight, std=0.1, generator=torch.Generator().manual_seed(index))
    shared, posi, nega = pipe.inputs_from_rows([ROW], ["layers"])
    shared, posi, nega = pipe.run_units({**shared, "noise": NOISE}, posi, nega)
    parameters = {name.removeprefix("pipe.dit."): p for name, p in module.trainable_parameters()}
    return parameters, FlowMatchSFTLoss(pipe, **shared, **posi, timestep=TIMESTEP)


def plain_step(pair: Pair, lora: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The same step of diffusers' and peft's own parts, with the formulas of the loss written out."""
    from diffusers import QwenImageTransformer2DModel
    from peft import LoraConfig, inject_adapter_in_model

    network = QwenImageTransformer2DModel.from_pretrained(pair.folder / "transformer").requires_grad_(False)
    targets = ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"]
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=2, target_modules=targets), network)
    parameters = {name: p for name, p in network.named_parameters() if "lora_" in name}
    assert set(parameters) == set(lora)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(lora[name])
        x0 = clean_latents(pair, Image.alpha_composite(*LAYERS))
        embeds = pair.official.encode_prompt(ROW["prompt"])[0]
    sigma, pack = TIMESTEP / 1000, pair.official._pack_latents
    noisy = (1 - sigma) * x0 + sigma * NOISE
    tokens = [pack(each, 1, 16, 8, 12, each.shape[1]) for each in (noisy, x0[:, :1])]
    output = network(
        hidden_states=torch.cat(tokens, dim=1),
        timestep=sigma,
        encoder_hidden_states=embeds,
        img_shapes=[[(1, 4, 6)] * 4],
        additional_t_cond=torch.tensor([0]),
        return_dict=False,
    )[0][:, : tokens[0].shape[1]]
    target = pack(NOISE - x0, 1, 16, 8, 12, 3)
    # The schedule that training draws from: the shift that 640 x 640 pixels, 1600 tokens, have.
    levels = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    levels = math.sqrt(1600 / 256) / (math.sqrt(1600 / 256) + 1 / levels - 1)

    def bell(s: Tensor) -> Tensor:
        return torch.exp(-2 * (s - 0.5) ** 2) - math.exp(-0.5)

    weight = bell(sigma.double()) / bell(levels).mean()
    return parameters, (output - target).square().mean() * weight.float()[0]


def test_the_loss_and_every_lora_gradient_equal_plain_diffusers_and_peft(pair: Pair) -> None:
    ours, loss = our_step(pair)
    loss.backward()
    parameters, expected = plain_step(pair, ours)
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    nonzero = 0
    for name, parameter in parameters.items():
        if parameter.grad is None:
            assert ours[name].grad is None
            continue
        torch.testing.assert_close(ours[name].grad, parameter.grad, atol=1e-6, rtol=0)
        nonzero += bool(parameter.grad.abs().max() > 1e-6)
    assert nonzero >= 20


def test_the_whole_picture_is_the_layers_on_each_other_and_is_what_is_decomposed(pair: Pair) -> None:
    shared, _, _ = pair.ours.inputs_from_rows([ROW], ["layers"])
    made = pair.ours.units[2].process(pair.ours, 64, 96, shared["input_layers"])
    assert torch.equal(made["edit_latents"], made["input_latents"][:, 0])
    whole = Image.alpha_composite(*LAYERS)
    assert np.abs(np.asarray(whole) - over(*LAYERS))[..., 3].max() < 1
    visible = np.asarray(whole)[..., 3] > 64  # the colour of what can hardly be seen is rounded coarsely
    assert np.abs(np.asarray(whole) - over(*LAYERS))[visible].max() < 4
    torch.testing.assert_close(made["input_latents"], clean_latents(pair, whole), atol=1e-5, rtol=0)
    other = {**ROW, "image": layer(96, 64, 8), "edit_image": layer(96, 64, 9)}
    shared, _, _ = pair.ours.inputs_from_rows([other], ["layers", "edit_image"])
    own = pair.ours.units[2].process(pair.ours, 64, 96, shared["input_layers"], shared["edit_image"])
    for name, picture in (("input_latents", other["image"]), ("edit_latents", other["edit_image"])):
        latents = own[name][:, 0] if name == "input_latents" else own[name]
        expected = pair.official._encode_vae_image(rgba(picture), None)[:, :, 0]
        torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)


def write_layers(folder: Path, count: int, size: tuple[int, int] = (48, 32), seed: int = 0) -> list[str]:
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        layer(*size, 20 * seed + number).save(folder / f"{number}.png")
    return [f"{folder.name}/{number}.png" for number in range(1, count + 1)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rows: three with two layers, as lists and a folder, and two with three."""
    folder = tmp_path_factory.mktemp("layers")
    rows = []
    for number, count in enumerate((2, 3, 2, 3, 2)):
        names = write_layers(folder / f"row{number}", count, seed=number)
        rows.append({"layers": names if number % 2 else f"row{number}/", "prompt": f"number {number}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(pair: Pair, data: Path, out: Path, **values: Any) -> dict[str, Any]:
    return {
        "model": str(pair.folder),
        "dataset_base_path": data,
        "data_file_keys": "layers",
        "extra_inputs": "layers",
        "output_path": out,
        "device": "cpu",
        "mixed_precision": "no",
        **values,
    }


def trained(out: Path) -> tuple[list[float], dict[str, Any]]:
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    return losses, read_safetensors(next(out.glob("step-*.safetensors")))[0]


def test_training_from_a_cache_in_batches_of_one_number_of_layers_equals_training_without(
    pair: Pair, data: Path, tmp_path: Path
) -> None:
    common = {"lora_rank": 2, "max_steps": 4, "batch_size": 2, "dataset_repeat": 3, "seed": 1}
    train(TrainOptions(**settings(pair, data, tmp_path / "plain", cache=False, **common)))
    make_cache(CacheOptions(**settings(pair, data, tmp_path / "cache"), batch_size=2))
    dataset = CachedDataset(tmp_path / "cache")
    shapes = [dataset.shape(entry, "shared.input_latents") for entry in dataset.entries]
    assert shapes == [[1, count, 16, 4, 6] for count in (3, 4, 3, 4, 3)]
    again = {"from_cache": tmp_path / "cache", "output_path": tmp_path / "again", "device": "cpu"}
    train(TrainOptions(**again, mixed_precision="no", **common))
    (losses, weights), (cached_losses, cached_weights) = trained(tmp_path / "plain"), trained(tmp_path / "again")
    assert losses == pytest.approx(cached_losses, abs=1e-6)
    assert weights.keys() == cached_weights.keys()
    assert all((weights[name] - cached_weights[name]).abs().max() < 1e-6 for name in weights)


def hiding(folder: Path) -> list[str]:
    names = write_layers(folder / "a", 2)
    Image.open(folder / names[1]).convert("RGB").save(folder / names[1])
    return names


def of_two_sizes(folder: Path) -> list[str]:
    return [*write_layers(folder / "a", 1), *write_layers(folder / "b", 1, (32, 32))]


def empty(folder: Path) -> str:
    (folder / "a").mkdir()
    return "a/"


def many(folder: Path) -> str:
    (name,) = write_layers(folder / "a", 1)
    for number in range(2, 66):
        shutil.copy(folder / name, folder / "a" / f"{number}.png")
    return "a"


def of_unknown_range(folder: Path) -> list[str]:
    names = write_layers(folder / "a", 1)
    Image.new("F", (48, 32)).save(folder / "a" / "2.tif")
    return [*names, "a/2.tif"]


BAD = {
    "hiding": (hiding, "layer 2 of 2 has no transparent pixel", "bottom to the top"),
    "two sizes": (of_two_sizes, "a picture of 32x32 pixels, but layers has 48x32", "one size"),
    "empty folder": (empty, "a is empty", "add its files"),
    "too many": (many, "65 files, but a row has at most 64", "a folder, or a list, of its own files"),
    "wrong mode": (of_unknown_range, "pixels of mode 'F'", "8-bit"),
    "no layers": (lambda _: None, "has neither 'image' nor 'layers'", "the dataset needs layers, or image"),
    "text": (lambda _: "b/", "b does not exist", "check"),
}


@pytest.mark.parametrize("name", BAD)
def test_rows_that_cannot_be_used_are_refused_in_one_line(pair: Pair, tmp_path: Path, name: str) -> None:
    make, problem, hint = BAD[name]
    (tmp_path / "data").mkdir()
    row = {"layers": make(tmp_path / "data"), "prompt": "a"}
    (tmp_path / "data" / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DsctlError) as caught:
        make_cache(CacheOptions(**settings(pair, tmp_path / "data", tmp_path / "out", height=32, width=32)))
    assert problem in caught.value.problem and "\n" not in caught.value.problem
    assert "row 1" in caught.value.problem
    assert hint in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()


def test_rows_of_a_batch_have_one_number_of_layers_and_one_picture_each(pair: Pair) -> None:
    rows = [ROW, {**ROW, "layers": LAYERS[:1]}]
    with pytest.raises(DsctlError, match="one batch has samples of 2 and of 1 layer"):
        pair.ours.inputs_from_rows(rows, ["layers"])
    with pytest.raises(DsctlError, match="2 pictures to decompose"):
        pair.ours.inputs_from_rows([{**ROW, "edit_image": LAYERS}], ["layers", "edit_image"])
    with pytest.raises(DsctlError, match="neither 'image' nor 'layers'") as caught:
        pair.ours.inputs_from_rows([ROW])
    assert "--extra-inputs layers" in (caught.value.hint or "")
    with pytest.raises(DsctlError, match="32x32 and 96x64 pixels"):
        pair.ours.inputs_from_rows([{**ROW, "image": layer(32, 32)}], ["layers"])


@pytest.mark.parametrize("columns", [{}, {"edit_image": "row1/1.png"}], ids=["without a picture", "with one"])
def test_samples_of_a_run_are_layers_of_a_picture(
    pair: Pair, data: Path, tmp_path: Path, columns: dict[str, Any]
) -> None:
    prompts = data / f"samples{len(columns)}.jsonl"
    prompts.write_text(json.dumps({"prompt": "a", "height": 32, "width": 48, **columns}) + "\n")
    asked = {"sample_every": 9, "sample_prompts_file": prompts, "sample_steps": 1, "lora_rank": 2, "max_steps": 1}
    options = TrainOptions(**settings(pair, data, tmp_path / "out", **asked))
    if not columns:
        with pytest.raises(UsageError, match="no pictures to decompose") as caught:
            train(options)
        assert "edit_image" in (caught.value.hint or "")
        return
    train(options)
    with Image.open(tmp_path / "out" / "samples" / "step-1-1.png") as shown:
        assert shown.size == (5 * 48 + 4 * 4, 32), "the composite and four layers in a row"
