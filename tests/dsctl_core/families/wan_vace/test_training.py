"""Training of Wan VACE: loss and gradients beside plain diffusers and peft, batches, and what is encoded once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from dsctl_core.errors import DsctlError
from dsctl_core.lora.layers import tuner_layers
from dsctl_core.losses.timesteps import Objective
from dsctl_core.training.model.task_module import TaskModule
from tests.dsctl_core.families.wan.conftest import Pair, clip, load
from tests.dsctl_core.families.wan_vace.conftest import REFERENCES, masks

SIDES = {"width": 64, "height": 32}
LEVEL = torch.tensor(912.5)
COLUMNS = ("vace_video", "vace_video_mask", "vace_reference_image")
PART = "dit.vace_blocks,dit.vace_patch_embedding"
# By name: the cells of a row, and what is trained.
ROWS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "all": {
        "vace_video": clip(5, 5, **SIDES),
        "vace_video_mask": masks(6, 5, **SIDES),
        "vace_reference_image": REFERENCES[:2],
    },
}
TRAINED: dict[str, dict[str, Any]] = {
    "the part": {"trainable_models": PART},
    "a LoRA on the part": {"lora_base_model": "dit", "lora_rank": 2},
    "a LoRA on the main blocks": {"lora_base_model": "dit", "lora_rank": 2, "lora_target_modules": "blocks"},
}


def row_of(cells: dict[str, Any], seed: int = 3) -> dict[str, Any]:
    row = {"video": clip(seed, 5, **SIDES), "prompt": f"number {seed}", "seed": seed, "_timestep": LEVEL}
    return {**row, **dict.fromkeys(COLUMNS), **cells}


def module_of(pair: Pair, **settings: Any) -> TaskModule:
    """A module that trains a fresh copy of the model; a LoRA has weights that do something."""
    pipe = load(pair.folder)
    module = TaskModule(pipe, "sft", extra_inputs=COLUMNS, objective=Objective(weighting="none"), **settings)
    for number, layer in enumerate(tuner_layers(pipe.dit).values()):
        generator = torch.Generator().manual_seed(number)
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.2, generator=generator)
    return module


def plain_transformer(pair: Pair, module: TaskModule) -> Any:
    """Diffusers' transformer with the layers of `module` put on it by peft, or with its part set to be trained."""
    dit = copy.deepcopy(pair.official.transformer).requires_grad_(False)
    layers = tuner_layers(module.pipe.dit)
    if not layers:
        for name, parameter in dit.named_parameters():
            parameter.requires_grad_(name.startswith("vace_"))
        return dit
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=list(layers)), dit)
    for name, layer in layers.items():
        made = dit.get_submodule(name)
        for part in ("lora_A", "lora_B"):
            getattr(made, part)["default"].weight.data = getattr(layer, part)["default"].weight.data.clone()
    return dit


def plain_loss(pair: Pair, dit: Any, row: dict[str, Any]) -> Tensor:
    """The loss of one row, computed here with diffusers' pipeline and transformer alone."""
    official, vae = pair.official, pair.official.vae
    mean, std = (torch.tensor(each).view(1, -1, 1, 1, 1) for each in (vae.config.latents_mean, vae.config.latents_std))
    references = (row["vace_reference_image"] or [])[::-1] or None
    with torch.no_grad():
        frames = official.video_processor.preprocess_video(row["video"], 32, 64)
        x0 = (vae.encode(frames).latent_dist.mode() - mean) / std
        text = official.encode_prompt(row["prompt"], None, False, max_sequence_length=512)[0]
        size = (1, 32, 64, 5, torch.float32, "cpu")
        given = official.preprocess_conditions(row["vace_video"], row["vace_video_mask"], references, *size)
        context = official.prepare_video_latents(*given, None, "cpu")
        follow = torch.cat([context, official.prepare_masks(given[1], given[2])], dim=1)
    # The reference images are frames of the target too, and count in the loss.
    x0 = torch.cat([context[:, :16, : len(given[2][0])], x0], dim=2)
    noise = torch.randn(x0.shape[1:], generator=torch.Generator().manual_seed(row["seed"]))[None]
    sigma = LEVEL / 1000
    made = dit((1 - sigma) * x0 + sigma * noise, LEVEL[None], text, control_hidden_states=follow)[0]
    return (made - (noise - x0)).square().mean()


def gradients(network: Any) -> dict[str, Tensor]:
    return {name: each.grad for name, each in network.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("settings", TRAINED.values(), ids=TRAINED)
@pytest.mark.parametrize("cells", ROWS.values(), ids=ROWS)
def test_loss_and_gradients_are_those_of_plain_diffusers_and_peft(
    pair: Pair, cells: dict[str, Any], settings: dict[str, Any]
) -> None:
    module, row = module_of(pair, **settings), row_of(cells)
    loss = module(row)
    loss.backward()
    dit = plain_transformer(pair, module)
    expected = plain_loss(pair, dit, row)
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    ours, theirs = gradients(module.pipe.dit), gradients(dit)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    assert sum(bool(each.abs().max() > 1e-5) for each in ours.values()) >= 30
    inside = [name.startswith("vace_") for name in ours]
    assert all(inside) if settings is not TRAINED["a LoRA on the main blocks"] else not any(inside)


@pytest.mark.parametrize("settings", TRAINED.values(), ids=TRAINED)
def test_recomputing_activations_changes_no_number(pair: Pair, settings: dict[str, Any]) -> None:
    plain, recomputed = (module_of(pair, **settings, use_gradient_checkpointing=each) for each in (False, True))
    for module in (plain, recomputed):
        module(row_of(ROWS["all"])).backward()
    one, other = gradients(plain.pipe.dit), gradients(recomputed.pipe.dit)
    assert one.keys() == other.keys()
    assert all(torch.equal(gradient, other[name]) for name, gradient in one.items())


def test_a_batch_gives_the_mean_of_the_losses_of_its_samples(pair: Pair) -> None:
    module = module_of(pair, **TRAINED["the part"])
    video, shown = clip(7, 5, **SIDES), masks(8, 5, **SIDES)
    cells: list[dict[str, Any]] = [
        ROWS["all"],
        {"vace_video": video, "vace_reference_image": REFERENCES[1:]},
        {"vace_video": video, "vace_video_mask": shown, "vace_reference_image": REFERENCES[::2]},
    ]
    rows = [row_of(each, seed) for seed, each in enumerate(cells)]
    together = float(module(rows).detach())
    alone = [float(module(row).detach()) for row in rows]
    assert together == pytest.approx(sum(alone) / 3, abs=1e-6)
    assert len({round(loss, 5) for loss in alone}) == 3
    with pytest.raises(DsctlError, match="one batch has samples whose"):
        module([rows[0], row_of({}, 4)])


def test_what_is_followed_is_encoded_once_and_the_noise_drawn_at_every_step(pair: Pair) -> None:
    stages = module_of(pair, **TRAINED["the part"]).stages
    once, every = ([type(unit).__name__ for unit in units] for units in (stages.split.once, stages.split.every_step))
    assert "VaceEmbedder" in once
    assert "InputVideoEmbedder" in once
    assert every == ["NoiseInitializer", "LatentsInitializer"]
    assert {"vace_latents", "vace_mask", "reference_frames"} <= stages.needs
    assert not set(COLUMNS) & stages.needs, "no picture goes into the cache"
    assert stages.second_components == ("dit",)


def test_a_mask_of_the_loss_leaves_the_reference_frames_in(pair: Pair) -> None:
    from dsctl_core.media.masks import LossMask
    from tests.dsctl_core.families.wan_vace.conftest import mask

    half = mask(4, **SIDES)
    with torch.no_grad():
        made = LossMask().process(pair.ours, 32, 64, 5, mask=[half], reference_frames=2)["loss_mask"]
        plain = LossMask().process(pair.ours, 32, 64, 5, mask=[half])["loss_mask"]
    assert made.shape == (1, 1, 4, 4, 8)
    assert torch.equal(made[:, :, 2:], plain)
    assert made[:, :, :2].unique().tolist() == [1]
    pipe = load(pair.folder)
    pipe.add_unit(LossMask(), ["mask"])
    module = TaskModule(pipe, "sft", extra_inputs=COLUMNS, objective=Objective(weighting="none"), trainable_models=PART)
    assert float(module({**row_of(ROWS["all"]), "mask": half}).detach()) > 0
