"""Z-Image in training: the loss and gradients of plain diffusers and peft, a cache, resuming, and Turbo's adapter."""

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
from safetensors.torch import load_file
from torch import Tensor

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.merge_lora import merge
from dsctl_core.commands.train import train
from dsctl_core.families.z_image.pipeline import ZImagePipeline
from dsctl_core.lora import LoraLayer, save_lora
from dsctl_core.lora.layers import linear_shapes, tuner_layers
from dsctl_core.losses import FlowMatchSFTLoss
from dsctl_core.options import CacheOptions, TrainOptions
from dsctl_core.options.lora_tools import MergeLoraOptions
from dsctl_core.progress import NoProgress
from dsctl_core.training.model.task_module import TaskModule
from tests.dsctl_core.families.z_image.conftest import PROMPTS, Pair, noisy, write_rows
from tests.tiny_models import write_tiny_z_image

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3"]


def fresh(folder: Path, only: list[str] | None = None) -> ZImagePipeline:
    configs = [ModelConfig(path=folder)]
    return ZImagePipeline.from_pretrained(torch_dtype=torch.float32, device="cpu", model_configs=configs, only=only)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number in range(3):
        noisy((48, 32), number).save(folder / f"{number}.png")
    prompts = (*PROMPTS, "a house")
    return write_rows(folder, *({"image": f"{n}.png", "prompt": prompt} for n, prompt in enumerate(prompts)))


def settings(model: Path | str, data: Path, out: Path, **values: Any) -> TrainOptions:
    base = {"device": "cpu", "mixed_precision": "no", "seed": 1, "max_steps": 3, "dataset_repeat": 4, "cache": False}
    return TrainOptions(**{**base, "model": str(model), "dataset_base_path": data, "output_path": out, **values})


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def plain_loss(pair: Pair, pictures: list[Image.Image], prompts: list[str], noise: Tensor, timestep: Tensor, lora: Any):
    """Return the LoRA parameters and the loss of one step, from diffusers' and peft's own parts."""
    from diffusers import ZImagePipeline as Official
    from peft import LoraConfig, inject_adapter_in_model

    pipe = Official.from_pretrained(pair.folder)
    pipe.transformer.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=2, target_modules=TARGETS), pipe.transformer)
    parameters = {name: p for name, p in pipe.transformer.named_parameters() if "lora_" in name}
    assert set(parameters) == set(lora)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(lora[name])
        pixels = [torch.from_numpy(np.array(p, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1 for p in pictures]
        raw = torch.cat([pipe.vae.encode(each[None]).latent_dist.mode() for each in pixels])
        x0 = (raw - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
        embeds = pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False)[0]
    sigma = (timestep / 1000).view(-1, 1, 1, 1)
    noisy_latents = ((1 - sigma) * x0 + sigma * noise).unsqueeze(2)
    output = pipe.transformer(list(noisy_latents), (1000 - timestep) / 1000, embeds, return_dict=False)[0]
    each = (torch.stack(output).squeeze(2) - (x0 - noise)).square().mean(dim=(1, 2, 3))
    levels = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    levels = 6 / (6 + 1 / levels - 1)  # the table of a shift of 6, which training draws from

    def bell(s: Tensor) -> Tensor:
        return torch.exp(-2 * (s - 0.5) ** 2) - math.exp(-0.5)

    weight = bell(timestep.double() / 1000) / bell(levels).mean()
    return parameters, (each * weight.float()).mean()


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "two lengths"])
def test_the_loss_and_every_lora_gradient_equal_plain_diffusers_and_peft(base: Pair, prompts: list[str]) -> None:
    pictures = [noisy((96, 64), index) for index in range(len(prompts))]
    noise = torch.randn(len(prompts), 16, 8, 12, generator=torch.Generator().manual_seed(1))
    timestep = torch.tensor([300.0, 800.0])[: len(prompts)]
    pipe = fresh(base.folder)
    module = TaskModule(pipe, "sft", lora_base_model="dit", lora_rank=4, lora_alpha=2)
    for index, layer in enumerate(tuner_layers(pipe.dit).values()):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1, generator=torch.Generator().manual_seed(index))
    rows = [{"image": picture, "prompt": prompt} for picture, prompt in zip(pictures, prompts, strict=True)]
    shared, posi, _ = pipe.inputs_from_rows(rows)
    shared, posi, _ = pipe.run_units({**shared, "noise": noise}, posi, {})
    ours = FlowMatchSFTLoss(pipe, **shared, **posi, timestep=timestep)
    ours.backward()
    trained = {name.removeprefix("pipe.dit."): p for name, p in module.trainable_parameters()}
    parameters, plain = plain_loss(base, pictures, prompts, noise, timestep, trained)
    plain.backward()
    assert float(ours.detach()) == pytest.approx(float(plain.detach()), abs=1e-6)
    assert len(trained) == 2 * 7 * (2 + 2), "seven layers of two blocks and two refiners"
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, parameters[name].grad, atol=1e-6, rtol=1e-5)
    assert max(float(parameter.grad.abs().max()) for parameter in trained.values()) > 1e-3


@pytest.mark.parametrize("offload", [False, True])
def test_gradient_checkpointing_changes_no_number(base: Pair, data: Path, tmp_path: Path, offload: bool) -> None:
    plain = train(settings(base.folder, data, tmp_path / "plain", lora_rank=2))
    flags = {"use_gradient_checkpointing": True, "use_gradient_checkpointing_offload": offload}
    other = train(settings(base.folder, data, tmp_path / "other", lora_rank=2, **flags))
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "other"), abs=1e-6)
    one, two = load_file(plain.checkpoint), load_file(other.checkpoint)
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6


def test_a_resumed_run_goes_on_to_the_bit(base: Pair, data: Path, tmp_path: Path) -> None:
    common = {"lora_rank": 2, "max_steps": 4, "batch_size": 2}
    whole = train(settings(base.folder, data, tmp_path / "whole", **common))
    train(settings(base.folder, data, tmp_path / "halves", **{**common, "max_steps": 2}))
    again = train(settings(base.folder, data, tmp_path / "halves", resume="latest", **common))
    assert losses(tmp_path / "whole") == losses(tmp_path / "halves")
    one, two = load_file(whole.checkpoint), load_file(again.checkpoint)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert len(one) > 0


def test_full_training_of_the_transformer_gives_its_published_names(pair: Pair, data: Path, tmp_path: Path) -> None:
    result = train(settings(pair.folder, data, tmp_path / "out", trainable_models="dit", max_steps=1))
    assert all(np.isfinite(losses(tmp_path / "out")))
    weights, before = load_file(result.checkpoint), pair.official.transformer.state_dict()
    assert set(weights) == set(before)
    assert not torch.equal(weights["x_pad_token"], before["x_pad_token"]), "the pad tokens are learned"


def test_a_cache_holds_latents_and_the_tokens_that_a_prompt_has(base: Pair, tmp_path: Path) -> None:
    noisy((512, 512)).save(tmp_path / "large.png")
    write_rows(tmp_path, {"image": "large.png", "prompt": "a large picture"})
    plain = {"model": str(base.folder), "dataset_base_path": tmp_path, "device": "cpu", "mixed_precision": "bf16"}
    make_cache(CacheOptions(**plain, output_path=tmp_path / "cache"))
    dataset = CachedDataset(tmp_path / "cache")
    sample = dataset.sample(dataset.entries[0])
    held = {name.partition(".")[2] for name in sample if sample[name] is not None}
    assert held == {"height", "input_latents", "prompt_embeds", "rand_device", "width"}
    assert sample["shared.input_latents"].shape == (1, 16, 64, 64)
    assert sample["posi.prompt_embeds"].shape[1] < 32, "padding is not kept"
    size = sum(path.stat().st_size for path in dataset.shards())
    reckoned = sum(base.ours.family.cache_bytes(base.ours.dit.config, 512, 512, 1, 15))
    assert size == pytest.approx(reckoned, rel=0.05)


class Notes(NoProgress):
    """Remembers what a person would be told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def turbo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model where the preset z-image-turbo would be downloaded to."""
    folder = write_tiny_z_image(tmp_path / "whole", shift=3.0)
    repository = tmp_path / "models" / "Tongyi-MAI" / "Z-Image-Turbo"
    for name in ("transformer", "text_encoder", "vae", "tokenizer"):
        shutil.copytree(folder / name, repository / name)
    monkeypatch.setenv("DSCTL_MODEL_BASE_PATH", str(tmp_path / "models"))
    return folder


@pytest.fixture
def adapter(turbo: Path, tmp_path: Path) -> Path:
    """A LoRA that stands for one that undoes Turbo's distillation."""
    shapes = linear_shapes(fresh(turbo, only=["dit"]).dit)
    generator = torch.Generator().manual_seed(2)
    layers = {
        name: LoraLayer(torch.randn(2, columns, generator=generator) * 0.1, torch.randn(rows, 2, generator=generator))
        for name, (rows, columns) in shapes.items()
        if name.endswith(tuple(TARGETS))
    }
    assert len(layers) == 7 * 4
    return save_lora(tmp_path / "adapter.safetensors", {"dit": layers}, {}, shapes={"dit": shapes})


@pytest.mark.parametrize(
    ("what", "warned"),
    [
        ({"lora_rank": 2}, True),
        ({"lora_rank": 2, "preset_lora_path": "adapter"}, False),
        ({"trainable_models": "dit"}, True),
        ({"trainable_models": "dit", "preset_lora_path": "adapter"}, True),
    ],
    ids=str,
)
def test_training_on_turbo_warns_and_names_the_base_unless_a_lora_is_trained_on_an_adapter(
    turbo: Path, adapter: Path, data: Path, tmp_path: Path, what: dict[str, Any], warned: bool
) -> None:
    progress = Notes()
    values = {key: adapter if value == "adapter" else value for key, value in what.items()}
    train(settings("z-image-turbo", data, tmp_path / "out", max_steps=1, **values), progress)
    notes = [note for note in progress.notes if note.startswith("Warning")]
    assert len(notes) == warned
    assert all("z-image-turbo is distilled" in each and "train on z-image instead" in each for each in notes)
    assert all("--preset-lora-path" in each for each in notes)


def test_a_lora_on_turbo_is_trained_on_top_of_the_adapter_and_does_not_hold_it(
    turbo: Path, adapter: Path, data: Path, tmp_path: Path
) -> None:
    merge(MergeLoraOptions(model=str(turbo), lora=(str(adapter),), output=tmp_path / "merged"))
    on_merged = train(settings(tmp_path / "merged", data, tmp_path / "a", lora_rank=2))
    on_preset = train(settings("z-image-turbo", data, tmp_path / "b", lora_rank=2, preset_lora_path=adapter))
    without = train(settings("z-image-turbo", data, tmp_path / "c", lora_rank=2))
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), abs=1e-6)
    assert losses(tmp_path / "a") != pytest.approx(losses(tmp_path / "c"), abs=1e-4), "the adapter counts"
    one, other = load_file(on_merged.checkpoint), load_file(on_preset.checkpoint)
    assert one.keys() == other.keys() == load_file(without.checkpoint).keys()
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-5


def test_turbo_and_base_are_trained_at_their_own_levels(turbo: Path, data: Path, tmp_path: Path) -> None:
    from dsctl_core.families.resolve import resolve_model

    found = resolve_model("z-image-turbo")
    pipe = found.load_pipeline(torch_dtype=torch.float32, device="cpu", only=["dit"])
    assert math.exp(pipe.scheduler.training_mu) == pytest.approx(3)
    assert math.exp(resolve_model("z-image").schedule.training_mu) == pytest.approx(6)
    assert math.exp(fresh(turbo, only=["dit"]).scheduler.training_mu) == pytest.approx(3), "as its scheduler file says"
    assert (found.defaults["num_inference_steps"], found.defaults["cfg_scale"]) == (8, 1.0)
