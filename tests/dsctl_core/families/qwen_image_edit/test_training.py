"""Qwen-Image-Edit in training: the loss and its gradients, the two stages, and rows with and without references."""

from __future__ import annotations

import json
import math
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
from dsctl_core.commands.infer import infer
from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.qwen_image_edit.family import FAMILY, fitted_size
from dsctl_core.families.qwen_image_edit.pipeline import QwenImageEditPipeline
from dsctl_core.families.resolve import resolve_model
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.lora.layers import tuner_layers
from dsctl_core.losses import FlowMatchSFTLoss
from dsctl_core.options import CacheOptions, InferOptions, TrainOptions
from dsctl_core.training.model.task_module import TaskModule
from tests.dsctl_core.families.qwen_image_edit.conftest import PIXELS, Pair, picture

SIZES = ((48, 32), (32, 64))  # of the reference pictures of one row
NOISE = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(5))
TIMESTEP = torch.tensor([812.5])


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1)[None, :, None] / 127.5 - 1


def our_step(pair: Pair, row: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
    pipe = QwenImageEditPipeline.from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(path=pair.folder)]
    )
    module = TaskModule(pipe, "sft", lora_base_model="dit", lora_rank=4, lora_alpha=2)
    for index, layer in enumerate(tuner_layers(pipe.dit).values()):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1, generator=torch.Generator().manual_seed(index))
    shared, posi, nega = pipe.inputs_from_rows([row], ["edit_image"])
    shared, posi, nega = pipe.run_units({**shared, "noise": NOISE}, posi, nega)
    parameters = {name.removeprefix("pipe.dit."): p for name, p in module.trainable_parameters()}
    return parameters, FlowMatchSFTLoss(pipe, **shared, **posi, timestep=TIMESTEP)


def plain_step(pair: Pair, row: dict[str, Any], lora: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The same step of diffusers' and peft's own parts, with the formulas of the loss written out."""
    from diffusers import QwenImageTransformer2DModel
    from peft import LoraConfig, inject_adapter_in_model

    network = QwenImageTransformer2DModel.from_pretrained(pair.folder / "transformer").requires_grad_(False)
    targets = ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"]
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=2, target_modules=targets), network)
    parameters = {name: p for name, p in network.named_parameters() if "lora_" in name}
    assert set(parameters) == set(lora)
    official, config = pair.official, pair.official.vae.config
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))

    def latents(image: Image.Image) -> Tensor:
        return ((official.vae.encode(pixels(image)).latent_dist.mode() - mean) / std)[:, :, 0]

    def resized(image: Image.Image, area: int) -> Image.Image:
        width, height = fitted_size(*image.size, area)
        return official.image_processor.resize(image, height, width)

    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(lora[name])
        x0 = latents(row["image"])
        edits = [latents(resized(image, PIXELS)) for image in row["edit_image"]]
        shown = [resized(image, 384 * 384) for image in row["edit_image"]]
        embeds = official.encode_prompt(row["prompt"], image=shown)[0]
    sigma = TIMESTEP / 1000
    noisy = (1 - sigma) * x0 + sigma * NOISE
    tokens = [official._pack_latents(each, 1, 16, *each.shape[2:]) for each in (noisy, *edits)]
    output = network(
        hidden_states=torch.cat(tokens, dim=1),
        timestep=sigma,
        encoder_hidden_states=embeds,
        img_shapes=[[(1, each.shape[2] // 2, each.shape[3] // 2) for each in (noisy, *edits)]],
        return_dict=False,
    )[0][:, : tokens[0].shape[1]]
    target = official._pack_latents(NOISE - x0, 1, 16, *x0.shape[2:])
    levels = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    levels = math.exp(0.8) / (math.exp(0.8) + 1 / levels - 1)  # the schedule that training draws from

    def bell(s: Tensor) -> Tensor:
        return torch.exp(-2 * (s - 0.5) ** 2) - math.exp(-0.5)

    weight = bell(sigma.double()) / bell(levels).mean()
    return parameters, (output - target).square().mean() * weight.float()[0]


def test_the_loss_and_every_lora_gradient_equal_plain_diffusers_and_peft(plus: Pair) -> None:
    images = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    row = {"image": picture(96, 64, 9), "prompt": "make it blue", "edit_image": images}
    ours, loss = our_step(plus, row)
    loss.backward()
    parameters, expected = plain_step(plus, row, ours)
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


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rows: two without reference pictures, two with one, and two with two."""
    folder = tmp_path_factory.mktemp("edits")
    rows = []
    for number in range(6):
        row: dict[str, Any] = {"image": f"{number}.png", "prompt": f"make it {number}"}
        picture(48, 32, 100 + number).save(folder / row["image"])
        names = [f"{number}-{place}.png" for place in range(number // 2)]
        for seed, (name, size) in enumerate(zip(names, SIZES, strict=False)):
            picture(*size, 10 * number + seed).save(folder / name)
        rows.append(row | ({"edit_image": names if len(names) > 1 else names[0]} if names else {}))
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(pair: Pair, data: Path, out: Path, **values: Any) -> dict[str, Any]:
    return {
        "model": str(pair.folder),
        "dataset_base_path": data,
        "data_file_keys": "image,edit_image",
        "extra_inputs": "edit_image",
        "output_path": out,
        "device": "cpu",
        "mixed_precision": "no",
        **values,
    }


def trained(out: Path) -> tuple[list[float], dict[str, Any]]:
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    return losses, read_safetensors(next(out.glob("step-*.safetensors")))[0]


def only(data: Path, folder: Path, rows: slice) -> Path:
    lines = (data / "metadata.jsonl").read_text().splitlines()[rows]
    folder.mkdir()
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "rows.jsonl"


@pytest.mark.parametrize(("rows", "batch_size"), [(slice(0, 6), 1), (slice(4, 6), 2)])
def test_training_from_a_cache_equals_training_without(
    plus: Pair, data: Path, tmp_path: Path, rows: slice, batch_size: int
) -> None:
    table = {"dataset_metadata_path": only(data, tmp_path / "table", rows)}
    common = {"lora_rank": 2, "max_steps": 6, "batch_size": batch_size, "dataset_repeat": 3, "seed": 1}
    train(TrainOptions(**settings(plus, data, tmp_path / "plain", cache=False, **common, **table)))
    make_cache(CacheOptions(**settings(plus, data, tmp_path / "cache", **table), batch_size=2))
    again = {"from_cache": tmp_path / "cache", "output_path": tmp_path / "again", "device": "cpu"}
    train(TrainOptions(**again, mixed_precision="no", **common))
    (losses, weights), (cached_losses, cached_weights) = trained(tmp_path / "plain"), trained(tmp_path / "again")
    assert losses == pytest.approx(cached_losses, abs=1e-6)
    assert weights.keys() == cached_weights.keys()
    assert all((weights[name] - cached_weights[name]).abs().max() < 1e-6 for name in weights)


def test_a_model_folder_has_the_defaults_of_its_kind(plus: Pair, original: Pair) -> None:
    steps = [resolve_model(str(pair.folder)).defaults["num_inference_steps"] for pair in (plus, original)]
    assert steps == [40, 50]


def test_what_is_cached_of_a_prompt_depends_on_the_reference_pictures(plus: Pair, data: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "".join(
            json.dumps({"image": "0.png", "prompt": "same", "edit_image": name}) + "\n"
            for name in ("2-0.png", "3-0.png", "2-0.png")
        )
    )
    table = tmp_path / "rows.jsonl"
    make_cache(CacheOptions(**settings(plus, data, tmp_path / "cache", dataset_metadata_path=table)))
    dataset = CachedDataset(tmp_path / "cache")
    first, second, again = (dataset.sample(entry) for entry in dataset.entries)
    for name in ("posi.prompt_embeds", "shared.edit_latents"):
        assert not torch.equal(first[name], second[name])
        assert torch.equal(first[name], again[name])
    assert torch.equal(first["shared.input_latents"], second["shared.input_latents"])


def test_the_reference_pictures_count_in_training(pair: Pair, data: Path, tmp_path: Path) -> None:
    table = {"dataset_metadata_path": only(data, tmp_path / "table", slice(2, 4))}
    common = {"lora_rank": 2, "max_steps": 1, "seed": 1, "cache": False, **table}
    train(TrainOptions(**settings(pair, data, tmp_path / "with", **common)))
    without = {**settings(pair, data, tmp_path / "without", **common), "data_file_keys": "image", "extra_inputs": ()}
    train(TrainOptions(**without))
    assert trained(tmp_path / "with")[0] != trained(tmp_path / "without")[0]


def test_the_first_version_takes_one_reference_picture(original: Pair, data: Path, tmp_path: Path) -> None:
    table = {"dataset_metadata_path": only(data, tmp_path / "table", slice(4, 6))}
    with pytest.raises(DsctlError, match="2 reference pictures are given, but this model takes one"):
        train(TrainOptions(**settings(original, data, tmp_path / "out", lora_rank=2, **table)))
    with pytest.raises(UsageError, match="takes one"):
        original.ours("a", edit_image=[picture(32, 32), picture(32, 32)], num_inference_steps=1)


@pytest.mark.parametrize("wrong", ["a prompt with <|image_pad|> in it", ["a", "b", "c"]])
def test_prompts_that_do_not_fit_the_pictures_are_refused(plus: Pair, wrong: Any) -> None:
    images: Any = [[picture(32, 32)], [picture(32, 32)]] if isinstance(wrong, list) else picture(32, 32)
    with pytest.raises(UsageError, match=r"<\|image_pad\|>|2 lists of reference pictures for 3 prompts") as caught:
        plus.ours(wrong, edit_image=images, num_inference_steps=1)
    assert caught.value.hint


def test_the_kind_of_a_model_is_part_of_the_identity_of_its_cache(
    plus: Pair, original: Pair, data: Path, tmp_path: Path
) -> None:
    table = only(data, tmp_path / "table", slice(2, 4))
    recipes = []
    for name, pair in (("plus", plus), ("original", original)):
        make_cache(CacheOptions(**settings(pair, data, tmp_path / name, dataset_metadata_path=table)))
        recipes.append(CachedDataset(tmp_path / name).manifest.recipe)
    assert recipes[0].components.keys() == recipes[1].components.keys() >= {"text_encoder", "vae"}
    assert all(recipes[0].components[name] != recipes[1].components[name] for name in recipes[0].components)


def test_infer_edits_at_the_size_that_the_last_reference_has(plus: Pair, tmp_path: Path) -> None:
    for number, size in enumerate([(70, 40), (32, 64)]):
        picture(*size, number).save(tmp_path / f"{number}.png")
    references = (tmp_path / "0.png", tmp_path / "1.png")
    common = {"model": str(plus.folder), "prompt": "a", "num_inference_steps": 1, "device": "cpu"}
    sized = infer(InferOptions(**common, edit_image=references, height=48, width=48, output=tmp_path / "b.png"))
    with Image.open(sized.files[0]) as made:
        assert made.size == (48, 48)
    parts = plus.ours.parts
    assert FAMILY.edited_size is not None
    assert FAMILY.edited_size(parts, [(70, 40), (32, 64)], 1024 * 1024) == fitted_size(32, 64, 1024 * 1024)


@pytest.mark.parametrize(
    ("version", "steps", "pipeline"),
    [
        ("", 50, "QwenImageEditPipeline"),
        ("-2509", 40, "QwenImageEditPlusPipeline"),
        ("-2511", 40, "QwenImageEditPlusPipeline"),
    ],
)
def test_single_components_of_a_published_repository_are_those_of_its_preset(
    plus: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, steps: int, pipeline: str
) -> None:
    (tmp_path / "Qwen").mkdir()
    for name in (f"Qwen-Image-Edit{version}", "Qwen-Image"):
        (tmp_path / "Qwen" / name).symlink_to(plus.folder)
    monkeypatch.setenv("DSCTL_MODEL_BASE_PATH", str(tmp_path))
    monkeypatch.setenv("DSCTL_SKIP_DOWNLOAD", "1")
    files = [f"Qwen/Qwen-Image-Edit{version}:transformer/*.safetensors", "Qwen/Qwen-Image:text_encoder/*.safetensors"]
    for order in (files, files[::-1]):
        resolved = resolve_model(model_id_with_origin_paths=",".join(order))
        assert resolved.family is FAMILY
        assert resolved.parts.settings["_class_name"] == pipeline
        assert resolved.defaults["num_inference_steps"] == steps
        assert set(resolved.reader_configs) == {"tokenizer", "processor"}


def test_samples_of_a_run_show_the_edit_that_infer_makes_of_their_references(
    plus: Pair, data: Path, tmp_path: Path
) -> None:
    table = {"dataset_metadata_path": only(data, tmp_path / "table", slice(2, 6))}
    drawn = {"sample_every": 9, "sample_height": 48, "sample_width": 32, "sample_steps": 1, "sample_cfg_scale": 2.0}
    common = {"lora_rank": 2, "max_steps": 1, **drawn}
    train(TrainOptions(**settings(plus, data, tmp_path / "rows", cache=False, **common, **table)))
    make_cache(CacheOptions(**settings(plus, data, tmp_path / "cache", **table)))
    prompts = tmp_path / "prompts.jsonl"
    lines = [json.loads(line) for line in (tmp_path / "table" / "rows.jsonl").read_text().splitlines()]
    for line in lines:
        names = [line["edit_image"]] if isinstance(line["edit_image"], str) else line["edit_image"]
        line["edit_image"] = [str(data / name) for name in names]
    written = [json.dumps({"prompt": line["prompt"], "edit_image": line["edit_image"]}) for line in lines]
    prompts.write_text("\n".join(written))
    again = {"from_cache": tmp_path / "cache", "output_path": tmp_path / "file", "sample_prompts_file": prompts}
    train(TrainOptions(**again, device="cpu", mixed_precision="no", **common))
    for number, line in enumerate(lines):
        edit = {"prompt": line["prompt"], "edit_image": line["edit_image"], "seed": number, "height": 48, "width": 32}
        made = infer(
            InferOptions(
                model=str(plus.folder),
                **edit,
                num_inference_steps=1,
                cfg_scale=2.0,
                negative_prompt="",
                output=tmp_path / f"{number}.png",
                device="cpu",
            )
        )
        samples = [tmp_path / run / "samples" / f"step-0-{number + 1}.png" for run in ("rows", "file")]
        for path in samples:
            with Image.open(path) as sample, Image.open(made.files[0]) as image:
                assert np.array_equal(np.asarray(sample), np.asarray(image))
                assert json.loads(sample.info["parameters"])["edit_image"] == line["edit_image"]
    prompts.write_text('{"prompt": "a", "edit_image": "nowhere.png"}')
    with pytest.raises(DsctlError, match=r"prompts.jsonl line 1, edit_image: .*nowhere.png"):
        train(TrainOptions(**{**again, "output_path": tmp_path / "bad"}, device="cpu", mixed_precision="no", **common))
