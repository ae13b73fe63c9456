"""Z-Image beside diffusers' own pipelines, in float32 on tiny random models: the same numbers."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import Tensor

from dsctl_core.families import load_family
from dsctl_core.families.z_image.pipeline import model_fn_z_image
from dsctl_core.family import Schedule
from dsctl_core.media.autoencoder_kl import decode, encode
from dsctl_core.scheduler import FlowMatchScheduler
from tests.dsctl_core.families.z_image.conftest import PROMPTS, Pair, close

STEPS = (1, 2, 4, 8, 9, 28, 50, 100)
SIZES = ((32, 32), (48, 80), (96, 112))  # height and width: 4, 15 and 42 tokens, where 32 and 64 are read
LONG = "red fox " * 600


def embed(pair: Pair, prompts: str | list[str]) -> list[Tensor]:
    """Our embeddings of each prompt, without padding."""
    with torch.no_grad():
        found = pair.ours.units[-1].process(pair.ours, prompts)
    embeds, mask = found["prompt_embeds"], found["prompt_embeds_mask"]
    assert found["prompt_pieces"] is None
    return list(embeds) if mask is None else [row[keep] for row, keep in zip(embeds, mask, strict=True)]


@pytest.mark.parametrize("prompts", [[""], PROMPTS[:1], PROMPTS, [LONG]], ids=["empty", "one", "two", "long"])
def test_text_embeddings(pair: Pair, prompts: list[str]) -> None:
    expected = [each[0] if pair.name == "omni" else each for each in pair.embeddings(prompts)]
    actual = embed(pair, prompts)
    assert len(actual) == len(expected) == len(prompts)
    for ours, theirs in zip(actual, expected, strict=True):
        close(ours, theirs)


def test_a_prompt_that_is_too_long_is_cut_and_said_so(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(embed(pair, LONG)[0]) == 512
    assert "a prompt is cut" in caplog.text
    caplog.clear()
    embed(pair, PROMPTS)
    assert not caplog.text


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "two lengths"])
def test_the_velocity_is_minus_the_output_of_the_network_at_time_one_minus_sigma(
    base: Pair, prompts: list[str], size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(len(prompts), 16, size[0] // 8, size[1] // 8, generator=generator)
    timestep = torch.tensor([900.0, 125.0])[: len(prompts)]
    with torch.no_grad():
        found = base.ours.units[-1].process(base.ours, prompts)
        found.pop("prompt_pieces")
        velocity = model_fn_z_image(base.ours.dit, latents, timestep, **found)
        expected = [
            -base.official.transformer([one.unsqueeze(1)], (1000 - t[None]) / 1000, [text], return_dict=False)[0][0]
            for one, t, text in zip(latents, timestep, base.embeddings(prompts), strict=True)
        ]
    close(velocity, torch.stack(expected).squeeze(2))
    assert velocity.std() > 0.05


@pytest.mark.parametrize("shift", [6.0, 3.0])
@pytest.mark.parametrize("steps", STEPS)
def test_sigmas(base: Pair, steps: int, shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    ours, theirs = FlowMatchScheduler(Schedule.constant(shift)), FlowMatchEulerDiscreteScheduler(shift=shift)
    for tokens in (4, 4096):
        ours.set_timesteps(steps, dynamic_shift_len=tokens)
        theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), mu=0.7)
        close(ours.sigmas, theirs.sigmas[:-1], atol=1e-6)
    if shift == 6.0:
        assert base.ours.scheduler.schedule == ours.schedule == load_family("z-image").schedule


def test_vae(base: Pair) -> None:
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae = base.official.vae
    with torch.no_grad():
        actual = encode(base.ours.vae, images, tiled=False, tile_size=512, tile_stride=384)
        raw = vae.encode(images).latent_dist.mode()
        close(actual, (raw - vae.config.shift_factor) * vae.config.scaling_factor)
        back = decode(base.ours.vae, actual, tiled=False, tile_size=512, tile_stride=384)
        close(back, vae.decode(raw).sample.clamp(-1, 1), atol=1e-4)
    assert (vae.config.shift_factor, vae.config.scaling_factor) == (0.1159, 0.3611)


@pytest.mark.parametrize("cfg_scale", [1.0, 5.0])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "batch"])
def test_whole_images(pair: Pair, prompts: list[str], cfg_scale: float) -> None:
    actual = pair.our_images(prompts, 2, cfg_scale, height=48, width=80)
    close(actual, pair.official_images(prompts, 2, cfg_scale, height=48, width=80))
    assert actual.std() > 0.05


def test_one_step_makes_the_picture_that_diffusers_makes(base: Pair) -> None:
    actual = base.our_images(PROMPTS[:1], 1, 5.0, height=96, width=112)
    close(actual, base.official_images(PROMPTS[:1], 1, 5.0, height=96, width=112))


def test_the_prompt_and_the_guidance_matter_to_the_random_model(base: Pair) -> None:
    plain = base.our_images(PROMPTS[:1], 2, 1.0, height=32, width=48)
    assert (base.our_images(PROMPTS[1:], 2, 1.0, height=32, width=48) - plain).abs().max() > 1e-3
    assert (base.our_images(PROMPTS[:1], 2, 5.0, height=32, width=48) - plain).abs().max() > 1e-3
