"""FLUX.1 in training: the loss and gradients of plain diffusers and peft, the two stages, masks and references."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.flux1.family import FAMILY
from dsctl_core.lora.layers import tuner_layers
from dsctl_core.losses import FlowMatchSFTLoss
from dsctl_core.options import CacheOptions, TrainOptions
from dsctl_core.training.model.task_module import TaskModule
from tests.dsctl_core.families.flux1.conftest import PROMPTS, Pair, fresh, mask_of, noisy, write_rows

TARGETS = (
    r".*\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out|proj_mlp|ff\.net\.0\.proj|ff\.net\.2"
    r"|ff_context\.net\.0\.proj|ff_context\.net\.2)|single_transformer_blocks\.\d+\.proj_out"
)
EXTRA = {"kontext": ["edit_image"], "fill": ["inpaint_mask"]}
SIZE = (96, 64)


def rows_of(kind: str, count: int) -> list[dict[str, Any]]:
    rows = []
    for number, prompt in enumerate(PROMPTS[:count]):
        more = {"kontext": {"edit_image": noisy((50, 60), 7 + number)}, "fill": {"inpaint_mask": mask_of(SIZE, number)}}
        rows.append({"image": noisy(SIZE, number), "prompt": prompt, **more.get(kind, {})})
    return rows


def plain_step(
    pair: Pair, rows: list[dict[str, Any]], noise: Tensor, timestep: Tensor, lora: dict[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the LoRA parameters and the loss of one step, from diffusers' and peft's own parts."""
    from diffusers import FluxTransformer2DModel
    from peft import LoraConfig, inject_adapter_in_model

    pipe, batch = pair.official, len(rows)
    network = FluxTransformer2DModel.from_pretrained(pair.folder / "transformer").requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=2, target_modules=TARGETS), network)
    parameters = {name: p for name, p in network.named_parameters() if "lora_" in name}
    assert set(parameters) == set(lora)

    def latents(pictures: list[Tensor]) -> Tensor:
        raw = torch.cat([pipe.vae.encode(each).latent_dist.mode() for each in pictures])
        return (raw - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor

    def pixels(picture: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1

    def pack(each: Tensor) -> Tensor:
        return pipe._pack_latents(each, *each.shape)

    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(lora[name])
        x0 = latents([pixels(row["image"]) for row in rows])
        length = 512 if network.config.guidance_embeds else 256
        embeds, pooled, text_ids = pipe.encode_prompt([row["prompt"] for row in rows], max_sequence_length=length)
        sigma = (timestep / 1000).view(-1, 1, 1, 1)
        tokens = pack((1 - sigma) * x0 + sigma * noise)
        count = tokens.shape[1]
        ids = pipe._prepare_latent_image_ids(batch, x0.shape[2] // 2, x0.shape[3] // 2, "cpu", torch.float32)
        if pair.kind == "kontext":
            seen = latents([pixels(pipe.image_processor.resize(row["edit_image"], 48, 48)) for row in rows])
            own = pipe._prepare_latent_image_ids(batch, 3, 3, "cpu", torch.float32)
            own[:, 0] = 1
            tokens, ids = torch.cat([tokens, pack(seen)], dim=1), torch.cat([ids, own])
        if pair.kind == "fill":
            masks = pipe.mask_processor.preprocess([row["inpaint_mask"] for row in rows], SIZE[1], SIZE[0])
            masked = torch.cat([pixels(row["image"]) for row in rows]) * (1 - masks)
            shape = (batch, 1, 16, *SIZE[::-1], "cpu")
            vae_mean = pipe.prepare_mask_latents(
                masks, masked, shape[0], 16, 1, SIZE[1], SIZE[0], torch.float32, "cpu", None
            )
            tokens = torch.cat([tokens, vae_mean[1], vae_mean[0]], dim=2)
    output = network(
        hidden_states=tokens,
        timestep=timestep / 1000,
        guidance=torch.ones(batch) if network.config.guidance_embeds else None,
        pooled_projections=pooled,
        encoder_hidden_states=embeds,
        txt_ids=text_ids,
        img_ids=ids,
        return_dict=False,
    )[0][:, :count]
    each = (output - pack(noise - x0)).square().mean(dim=(1, 2))
    shift = 1 if pair.kind == "schnell" else 3
    levels = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    levels = shift / (shift + 1 / levels - 1)  # the table that training draws from

    def bell(s: Tensor) -> Tensor:
        return torch.exp(-2 * (s - 0.5) ** 2) - math.exp(-0.5)

    weight = bell(timestep.double() / 1000) / bell(levels).mean()
    return parameters, (each * weight.float()).mean()


@pytest.mark.parametrize(("kind", "count"), [("dev", 2), ("schnell", 1), ("kontext", 2), ("fill", 2)])
def test_the_loss_and_every_lora_gradient_equal_plain_diffusers_and_peft(
    pairs: dict[str, Pair], fill: Pair, kind: str, count: int
) -> None:
    pair, rows = pairs[kind], rows_of(kind, count)
    noise = torch.randn(count, 16, 8, 12, generator=torch.Generator().manual_seed(1))
    timestep = torch.tensor([300.0, 800.0])[:count]
    pipe = fresh(pair.folder)
    module = TaskModule(pipe, "sft", lora_base_model="dit", lora_rank=4, lora_alpha=2)
    for index, layer in enumerate(tuner_layers(pipe.dit).values()):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1, generator=torch.Generator().manual_seed(index))
    shared, posi, _ = pipe.inputs_from_rows(rows, EXTRA.get(kind, []))
    shared, posi, _ = pipe.run_units({**shared, "noise": noise}, posi, {})
    ours = FlowMatchSFTLoss(pipe, **shared, **posi, timestep=timestep)
    parameters = {name.removeprefix("pipe.dit."): p for name, p in module.trainable_parameters()}
    theirs, plain = plain_step(pair, rows, noise, timestep, parameters)
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-6)
    ours.backward()
    plain.backward()
    assert len(theirs) == 2 * 2 * (12 + 5)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-6, rtol=1e-4)
        assert parameter.grad.abs().max() > 0


def settings(model: Path, data: Path, out: Path, **values: Any) -> TrainOptions:
    base = {"device": "cpu", "mixed_precision": "no", "seed": 1, "max_steps": 2, "dataset_repeat": 2, "lora_rank": 2}
    return TrainOptions(**{**base, "model": str(model), "dataset_base_path": data, "output_path": out, **values})


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = []
    for number, prompt in enumerate(PROMPTS):
        noisy((48, 32), number).save(tmp_path / f"{number}.png")
        noisy((50, 60), number + 5).save(tmp_path / f"{number}-before.png")
        mask_of((48, 32), number).save(tmp_path / f"{number}-mask.png")
        more = {"edit_image": f"{number}-before.png", "inpaint_mask": f"{number}-mask.png"}
        rows.append({"image": f"{number}.png", "prompt": prompt, **more})
    return write_rows(tmp_path, *rows)


@pytest.mark.parametrize("kind", ["schnell", "kontext", "fill"])
def test_training_in_two_stages_equals_training_in_one(
    pairs: dict[str, Pair], data: Path, tmp_path: Path, kind: str
) -> None:
    columns = EXTRA.get(kind, [])
    more = {"data_file_keys": ",".join(["image", *columns]), "extra_inputs": ",".join(columns)} if columns else {}
    whole = train(settings(pairs[kind].folder, data, tmp_path / "whole", cache=False, **more))
    split = train(settings(pairs[kind].folder, data, tmp_path / "split", cache=True, **more))
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "split"), abs=1e-6)
    one, two = load_file(whole.checkpoint), load_file(split.checkpoint)
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6


def test_a_cache_is_as_large_as_reckoned(dev: Pair, tmp_path: Path) -> None:
    noisy((256, 256)).save(tmp_path / "large.png")
    write_rows(tmp_path, {"image": "large.png", "prompt": "a large picture"})
    plain = {"model": str(dev.folder), "dataset_base_path": tmp_path, "device": "cpu", "mixed_precision": "bf16"}
    make_cache(CacheOptions(**plain, output_path=tmp_path / "cache"))
    dataset = CachedDataset(tmp_path / "cache")
    sample = dataset.sample(dataset.entries[0])
    assert sample["shared.input_latents"].shape == (1, 16, 32, 32)
    assert sample["posi.prompt_embeds"].shape == (1, 512, 24)
    size = sum(path.stat().st_size for path in dataset.shards())
    assert size == pytest.approx(sum(dev.ours.family.cache_bytes(dev.ours.dit.config, 256, 256, 1, 15)), rel=0.05)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("dev", {"edit_image": noisy((48, 48))}, "these weights take no reference pictures"),
        ("fill", {"edit_image": noisy((48, 48))}, "these weights take no reference pictures"),
        ("fill", {}, "Fill needs an input image and an inpaint mask"),
        ("fill", {"input_image": noisy((48, 32))}, "Fill needs an input image and an inpaint mask"),
        ("schnell", {"embedded_guidance": 3.0}, "these weights take no embedded guidance"),
        ("dev", {"height": 40}, "the height 40 is not a multiple of 16"),
    ],
    ids=lambda each: ",".join(each) if isinstance(each, dict) else str(each),
)
def test_an_input_that_the_model_does_not_take_is_one_line(
    pairs: dict[str, Pair], kind: str, values: dict[str, Any], message: str
) -> None:
    options = {"height": 32, "width": 48, "num_inference_steps": 1, **values}
    with pytest.raises(UsageError, match=message):
        pairs[kind].ours("a", **options)


def test_a_mask_has_no_effect_on_training_of_weights_that_do_not_read_it(dev: Pair, data: Path, tmp_path: Path) -> None:
    more = {"data_file_keys": "image,inpaint_mask", "extra_inputs": "inpaint_mask"}
    with pytest.raises(DsctlError, match="do not read an inpaint_mask"):
        train(settings(dev.folder, data, tmp_path / "out", **more))


def test_a_network_of_another_kind_is_named(pairs: dict[str, Pair]) -> None:
    inputs = {"prompt_embeds": torch.zeros(1, 4, 24), "pooled_embeds": torch.zeros(1, 16)}
    with pytest.raises(DsctlError, match="reads 384 channels, but these inputs have 64"):
        pairs["fill"].ours.call_model_fn(latents=torch.zeros(1, 16, 4, 4), timestep=torch.tensor([1.0]), **inputs)


def test_every_preset_knows_its_guidance_and_how_long_its_prompts_are() -> None:
    from dsctl_core.families.flux1.family import guidance_of, is_fill, takes_references, text_tokens
    from dsctl_core.families.resolve import resolve_model

    found = {}
    for preset in FAMILY.presets:
        parts = resolve_model(preset.name).parts
        found[preset.name] = (guidance_of(parts), text_tokens(parts), takes_references(parts), is_fill(parts))
    assert found == {
        "flux1-dev": (3.5, 512, False, False),
        "flux1-schnell": (3.5, 256, False, False),
        "flux1-krea-dev": (4.5, 512, False, False),
        "flux1-kontext-dev": (2.5, 512, True, False),
        "flux1-fill-dev": (30.0, 512, False, True),
    }


def test_an_edited_picture_is_a_square_as_in_diffusers_and_a_folder_has_the_steps_of_its_kind(
    pairs: dict[str, Pair],
) -> None:
    from dsctl_core.families.resolve import resolve_model

    parts = pairs["kontext"].ours.parts
    assert FAMILY.edited_size is not None
    assert FAMILY.edited_size(parts, [(600, 400)], 1024 * 1024) == (1024, 1024)
    assert FAMILY.edited_size(parts, [(600, 400)], 500 * 500) == (496, 496)
    steps = {kind: resolve_model(str(pair.folder)).defaults["num_inference_steps"] for kind, pair in pairs.items()}
    assert steps == {"dev": 50, "schnell": 50, "kontext": 28, "fill": 50}


def test_fill_takes_one_mask_or_one_for_each_picture(fill: Pair) -> None:
    images, masks = [noisy((48, 32), n) for n in range(2)], [mask_of((48, 32), n) for n in range(3)]
    options = {"height": 32, "width": 48, "num_inference_steps": 1, "seed": 1, "input_image": images}
    made = fill.ours(list(PROMPTS), inpaint_mask=masks[:2], **options)
    alone = fill.ours(PROMPTS[1], inpaint_mask=masks[1], **{**options, "input_image": images[1]})
    assert np.abs(np.array(made[1], dtype=int) - np.array(alone, dtype=int)).max() <= 1
    with pytest.raises(UsageError, match="3 inpaint masks for 2 images"):
        fill.ours(list(PROMPTS), inpaint_mask=masks, **options)
