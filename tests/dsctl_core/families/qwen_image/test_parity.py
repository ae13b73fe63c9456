"""Qwen-Image beside diffusers' own QwenImagePipeline, in float32 on a tiny random model: the same numbers."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dsctl_core.families.qwen_image.latents import decode, encode, pack, unpack
from dsctl_core.families.qwen_image.pipeline import QwenImagePipeline
from dsctl_core.pipeline import no_progress_bar

STEPS = (2, 3, 4, 8, 20, 30, 50, 100)  # diffusers divides 0 by 0 at a single step; see below for that
SIZES = ((96, 96), (64, 96), (96, 64), (512, 768), (1328, 1328), (928, 1664))
PROMPTS = ["a red fox", "a small yellow star in the top left corner on a black background"]


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def embed(pipe: QwenImagePipeline, prompt: str | list[str]) -> tuple[Tensor, Tensor | None]:
    unit = pipe.units[-1]
    with torch.no_grad():
        outputs = unit.process(pipe, prompt)
    return outputs["prompt_embeds"], outputs["prompt_embeds_mask"]


@pytest.mark.parametrize("prompt", ["", PROMPTS[0], [PROMPTS[0]], PROMPTS, [PROMPTS[1]] * 2])
def test_text_embeddings(pipe: QwenImagePipeline, official: Any, prompt: str | list[str]) -> None:
    embeds, mask = embed(pipe, prompt)
    with torch.no_grad():
        expected, expected_mask = official.encode_prompt(prompt)
    close(embeds, expected)
    assert (mask is None) == (expected_mask is None)
    if mask is not None:
        assert torch.equal(mask, expected_mask.bool())


def test_padding_does_not_change_a_prompt(pipe: QwenImagePipeline) -> None:
    together, mask = embed(pipe, PROMPTS)
    assert mask is not None
    for index, prompt in enumerate(PROMPTS):
        close(together[index][mask[index]], embed(pipe, prompt)[0][0])
    assert (together[~mask] == 0).all()


def test_a_prompt_that_is_too_long_is_cut_and_said_so(
    pipe: QwenImagePipeline, official: Any, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = "red fox " * 1100
    with caplog.at_level(logging.WARNING):
        embeds, _ = embed(pipe, prompt)
    with torch.no_grad():
        expected, _ = official.encode_prompt(prompt, max_sequence_length=1024)
    assert embeds.shape[1] == 1024
    close(embeds, expected)
    assert "is cut to 1024" in caplog.text


def test_a_prompt_that_fits_is_not_talked_about(pipe: QwenImagePipeline, caplog: pytest.LogCaptureFixture) -> None:
    embed(pipe, PROMPTS)
    assert not caplog.text


@pytest.mark.parametrize("size", [(16, 16), (64, 96), (96, 64), (48, 80)])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_transformer_output(pipe: QwenImagePipeline, official: Any, size: tuple[int, int], prompts: list[str]) -> None:
    height, width = size[0] // 8, size[1] // 8
    batch = len(prompts)
    latents = torch.randn(batch, 16, height, width, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([713.25, 20.0])[:batch]
    embeds, mask = embed(pipe, prompts)
    with torch.no_grad():
        expected_embeds, expected_mask = official.encode_prompt(prompts)
        expected = official.transformer(
            hidden_states=official._pack_latents(latents, batch, 16, height, width),
            timestep=timestep / 1000,
            encoder_hidden_states=expected_embeds,
            encoder_hidden_states_mask=expected_mask,
            img_shapes=[[(1, height // 2, width // 2)]] * batch,
            return_dict=False,
        )[0]
        actual = pipe.call_model_fn(latents=latents, timestep=timestep, prompt_embeds=embeds, prompt_embeds_mask=mask)
    close(actual, official._unpack_latents(expected, *size, 8)[:, :, 0])
    assert actual.std() > 0.1, "the random model predicts next to nothing, so this proves nothing"


def test_tokens_are_packed_and_unpacked(official: Any) -> None:
    latents = torch.randn(2, 16, 8, 12)
    assert torch.equal(pack(latents), official._pack_latents(latents, 2, 16, 8, 12))
    assert torch.equal(unpack(pack(latents), 8, 12), latents)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("steps", STEPS)
def test_sigmas(pipe: QwenImagePipeline, official: Any, steps: int, size: tuple[int, int]) -> None:
    from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

    tokens = size[0] * size[1] // 256
    pipe.scheduler.set_timesteps(steps, dynamic_shift_len=tokens)
    config = official.scheduler.config
    mu = calculate_shift(
        tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
    )
    official.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    close(pipe.scheduler.sigmas, official.scheduler.sigmas[:-1], atol=1e-6)


def test_vae_encoding(pipe: QwenImagePipeline, official: Any) -> None:
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    config = official.vae.config
    with torch.no_grad():
        raw = official.vae.encode(images.unsqueeze(2)).latent_dist.mode()[:, :, 0]
        actual = encode(pipe.vae, images, tiled=False, tile_size=256, tile_stride=192)
    mean, std = (torch.tensor(values).view(1, 16, 1, 1) for values in (config.latents_mean, config.latents_std))
    close(actual, (raw - mean) / std)


def test_vae_decoding(pipe: QwenImagePipeline, official: Any) -> None:
    latents = torch.randn(2, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    config = official.vae.config
    mean, std = (torch.tensor(values).view(1, 16, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
    with torch.no_grad():
        expected = official.vae.decode(latents.unsqueeze(2) * std + mean).sample[:, :, 0]
        actual = decode(pipe.vae, latents, tiled=False, tile_size=256, tile_stride=192)
    close(actual, expected)


def official_images(official: Any, prompts: list[str], steps: int, cfg: float, size: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) in [0, 1], before rounding to pixels; seeds 3, 4, ..."""
    return official(
        prompt=prompts,
        negative_prompt=["blue"] * len(prompts) if cfg > 1 else None,
        true_cfg_scale=cfg,
        height=size[0],
        width=size[1],
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(3 + index) for index in range(len(prompts))],
        output_type="pt",
    ).images


def our_images(pipe: QwenImagePipeline, prompts: list[str], steps: int, cfg: float, size: tuple[int, int]) -> Tensor:
    seeds = [3 + index for index in range(len(prompts))]
    with torch.no_grad():
        latents = pipe.generate(
            prompt=prompts,
            negative_prompt="blue",
            num_inference_steps=steps,
            denoising_strength=1.0,
            progress_bar_cmd=no_progress_bar,
            shared={"cfg_scale": cfg, "height": size[0], "width": size[1], "seed": seeds},
        )
        return decode(pipe.vae, latents, tiled=False, tile_size=256, tile_stride=192) * 0.5 + 0.5


@pytest.mark.parametrize("size", [(96, 96), (64, 96)])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("steps", [2, 4])
def test_whole_images(pipe: QwenImagePipeline, official: Any, steps: int, cfg: float, size: tuple[int, int]) -> None:
    actual = our_images(pipe, PROMPTS[:1], steps, cfg, size)
    close(actual, official_images(official, PROMPTS[:1], steps, cfg, size))
    assert actual.std() > 0.05


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_a_batch_of_whole_images_with_prompts_of_different_lengths(
    pipe: QwenImagePipeline, official: Any, cfg: float
) -> None:
    actual = our_images(pipe, PROMPTS, 2, cfg, (64, 96))
    close(actual, official_images(official, PROMPTS, 2, cfg, (64, 96)))
    for index, prompt in enumerate(PROMPTS):
        noise = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(3 + index))
        alone = pipe(
            prompt, negative_prompt="blue", cfg_scale=cfg, height=64, width=96, num_inference_steps=2, noise=noise
        )
        pixels = torch.from_numpy(np.array(alone)).permute(2, 0, 1) / 255
        close(actual[index], pixels, atol=0.5 / 255 + 1e-5)


def test_the_prompt_and_the_guidance_matter_to_the_random_model(pipe: QwenImagePipeline) -> None:
    base = our_images(pipe, PROMPTS[:1], 2, 1.0, (64, 96))
    assert (our_images(pipe, PROMPTS[1:], 2, 1.0, (64, 96)) - base).abs().max() > 1e-3
    assert (our_images(pipe, PROMPTS[:1], 2, 4.0, (64, 96)) - base).abs().max() > 1e-3


def test_pictures_are_rounded_to_the_nearest_level(pipe: QwenImagePipeline) -> None:
    exact = our_images(pipe, PROMPTS[:1], 2, 1.0, (64, 96))[0].permute(1, 2, 0).numpy() * 255
    picture = pipe(PROMPTS[0], cfg_scale=1.0, height=64, width=96, num_inference_steps=2, seed=3)
    difference = np.array(picture).astype(np.float32) - exact
    assert np.abs(difference).max() <= 0.5 + 1e-3
    assert abs(difference.mean()) < 0.02, "pictures are darker or lighter than what the VAE said"


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_one_step_makes_a_finite_picture(pipe: QwenImagePipeline, cfg: float) -> None:
    image = our_images(pipe, PROMPTS[:1], 1, cfg, (64, 96))
    assert image.isfinite().all()
    assert image.std() > 0.05


def test_guidance_of_a_model_that_predicts_nothing_is_nothing(pipe: QwenImagePipeline) -> None:
    nothing = torch.zeros(1, 16, 4, 4)
    assert torch.equal(pipe.guide(nothing, nothing, 4.0), nothing)


def test_guidance_keeps_the_norm_of_every_token(pipe: QwenImagePipeline) -> None:
    posi, nega = torch.randn(2, 2, 16, 8, 12)
    guided = pipe.guide(posi, nega, 4.0)
    close(pack(guided).norm(dim=-1), pack(posi).norm(dim=-1), atol=1e-4)
    close(pipe.guide(posi, nega, 1.0), posi)
