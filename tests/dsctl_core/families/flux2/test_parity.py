"""FLUX.2 beside diffusers' own pipelines, in float32 on tiny random models: the same numbers."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dsctl_core.errors import DsctlError
from dsctl_core.families.flux2.latents import decode, encode, pack, patchify, picture_places, text_places, unpack
from dsctl_core.families.flux2.latents import unpatchify as undone
from dsctl_core.families.flux2.text import embed as embed_with
from dsctl_core.families.flux2.text import layers_taken, tokenize
from dsctl_core.families.flux2.units import fitted
from dsctl_core.pipeline import no_progress_bar
from tests.dsctl_core.families.flux2.conftest import Pair
from tests.tiny_models import randomize

STEPS = (1, 2, 4, 8, 20, 28, 50, 100)
SIZES = ((64, 96), (512, 512), (512, 768), (1024, 1024), (928, 1664), (1536, 1536))
PROMPTS = ["a red fox", "a small yellow star in the top left corner on a black background"]


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def noisy(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture of `size` (width, height) with something in it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def embed(pair: Pair, prompts: str | list[str]) -> Tensor:
    with torch.no_grad():
        return pair.ours.units[-1].process(pair.ours, prompts)["prompt_embeds"]


@pytest.mark.parametrize("prompt", ["", PROMPTS[0], PROMPTS, "with [IMG] in it"])
def test_text_embeddings(pair: Pair, prompt: str | list[str]) -> None:
    actual = embed(pair, prompt)
    close(actual, pair.embeddings(prompt))
    assert actual.shape[1:] == (512, 48)


def of_depth(pair: Pair, depth: int, **named: Any) -> Any:
    """The text encoder of `pair` with `depth` random layers, and without layers named in its config but `named`."""
    config = copy.deepcopy(pair.official.text_encoder.config)
    text = config.get_text_config()
    text.num_hidden_layers, text.layer_types = depth, None
    del text.text_encoder_out_layers
    for name, value in named.items():
        setattr(text, name, value)
    encoder = type(pair.official.text_encoder)(type(config)(**config.to_dict()))
    return randomize(encoder, torch.Generator().manual_seed(depth))


@pytest.mark.parametrize("depth", [30, 33, 40])
def test_a_text_encoder_of_any_depth_is_read_at_the_published_layers(pair: Pair, depth: int) -> None:
    encoder, tokenizer = of_depth(pair, depth), pair.official.tokenizer
    with torch.no_grad():
        actual = embed_with(encoder, *tokenize(tokenizer, encoder, PROMPTS))
        if pair.name == "klein":
            expected = pair.official._get_qwen3_prompt_embeds(encoder, tokenizer, PROMPTS)
        else:
            expected = pair.official._get_mistral_3_small_prompt_embeds(encoder, tokenizer, PROMPTS)
    close(actual, expected, 1e-4)
    assert actual.std() > 1
    assert layers_taken(encoder) == ((9, 18, 27) if pair.name == "klein" else (10, 20, 30))


@pytest.mark.parametrize(
    ("depth", "named", "said"),
    [
        (20, {}, "which has 20 layers"),
        (4, {"text_encoder_out_layers": [1, 2, 5]}, r"the hidden states \[1, 2, 5\]"),
        (4, {"text_encoder_out_layers": "1"}, "the hidden states 1 of"),
    ],
)
def test_hidden_states_that_a_text_encoder_lacks_are_refused(pair: Pair, depth: int, named: Any, said: str) -> None:
    with pytest.raises(DsctlError, match=said) as caught:
        layers_taken(of_depth(pair, depth, **named))
    assert "text_encoder_out_layers" in str(caught.value.hint)


def test_a_prompt_that_is_too_long_is_cut_and_said_so(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    prompt = "red fox " * 600
    with caplog.at_level(logging.WARNING):
        close(embed(pair, prompt), pair.embeddings(prompt))
    assert "a prompt is cut" in caplog.text
    caplog.clear()
    embed(pair, PROMPTS)
    assert not caplog.text


def test_latents_are_patched_packed_and_placed_as_in_diffusers(klein: Pair) -> None:
    raw = torch.randn(2, 32, 8, 12)
    latents = patchify(raw)
    assert torch.equal(latents, klein.official._patchify_latents(raw))
    assert torch.equal(undone(latents), raw)
    assert torch.equal(pack(latents), klein.official._pack_latents(latents))
    assert torch.equal(unpack(pack(latents), 4, 6), latents)
    references = [torch.zeros(1, 128, 3, 2), torch.zeros(1, 128, 2, 5)]
    expected = torch.cat(
        [klein.official._prepare_latent_ids(latents)[0], klein.official._prepare_image_ids(references)[0]]
    )
    assert torch.equal(picture_places([(4, 6), (3, 2), (2, 5)], torch.device("cpu")), expected)
    assert torch.equal(text_places(7, torch.device("cpu")), klein.official._prepare_text_ids(torch.zeros(1, 7, 1))[0])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("steps", STEPS)
def test_sigmas(klein: Pair, steps: int, size: tuple[int, int]) -> None:
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    tokens = size[0] * size[1] // 256
    klein.ours.scheduler.set_timesteps(steps, dynamic_shift_len=tokens)
    mu = compute_empirical_mu(tokens, steps)
    klein.official.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    close(klein.ours.scheduler.sigmas, klein.official.scheduler.sigmas[:-1], atol=1e-6)


def test_vae(klein: Pair) -> None:
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        actual = encode(klein.ours.vae, images, tiled=False, tile_size=512, tile_stride=384)
        close(actual, klein.official._encode_vae_image(images, generator=None))
        assert actual.mean().abs() > 1e-3, "the batch norm's statistics count"
        back = decode(klein.ours.vae, actual, tiled=False, tile_size=512, tile_stride=384)
        expected = klein.official.vae.decode(klein.official.vae.encode(images).latent_dist.mode()).sample
    close(back, expected.clamp(-1, 1), atol=1e-4)


@pytest.mark.parametrize("size", [(640, 384), (100, 77), (1300, 1100), (2000, 700)])
def test_reference_pictures_are_fitted_as_in_diffusers(klein: Pair, size: tuple[int, int]) -> None:
    picture = noisy(size)
    actual = klein.ours.preprocess_image(fitted(picture))
    processor = klein.official.image_processor
    resized = processor._resize_if_exceeds_area(picture, 1024 * 1024)
    sides = {"width": resized.width // 16 * 16, "height": resized.height // 16 * 16}
    close(actual, processor.preprocess(resized, resize_mode="crop", **sides))


def official_images(pair: Pair, prompts: list[str], steps: int, scale: float, **more: Any) -> Tensor:
    """(B, 3, H, W) in [0, 1], before rounding to pixels; seeds 3, 4, ..."""
    return pair.official(
        prompt=prompts,
        guidance_scale=scale,
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(3 + index) for index in range(len(prompts))],
        output_type="pt",
        text_encoder_out_layers=(1, 2, 3),
        **more,
    ).images


def our_images(pair: Pair, prompts: list[str], steps: int, scale: float, image: Any = None, **size: int) -> Tensor:
    """The same of ours: `scale` is two passes for klein, an input of the network for dev."""
    pipe = pair.ours
    cfg, embedded = (scale, None) if pair.name == "klein" else (1.0, scale)
    with torch.no_grad():
        latents = pipe.generate(
            prompt=prompts,
            negative_prompt="",
            num_inference_steps=steps,
            denoising_strength=1.0,
            progress_bar_cmd=no_progress_bar,
            shared={
                **size,
                "cfg_scale": cfg,
                "embedded_guidance": pipe.guidance(embedded),
                "seed": [3 + index for index in range(len(prompts))],
                "edit_image": image,
            },
        )
        return decode(pipe.vae, latents, tiled=False, tile_size=512, tile_stride=384) * 0.5 + 0.5


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "batch"])
def test_whole_images(pair: Pair, prompts: list[str], scale: float) -> None:
    actual = our_images(pair, prompts, 3, scale, height=64, width=96)
    close(actual, official_images(pair, prompts, 3, scale, height=64, width=96))
    assert actual.std() > 0.05


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "batch"])
def test_whole_images_with_reference_pictures(pair: Pair, prompts: list[str], count: int) -> None:
    pictures = [noisy(size, seed) for seed, size in enumerate([(64, 64), (96, 64), (70, 100)][:count])]
    actual = our_images(pair, prompts, 2, 4.0, pictures, height=64, width=96)
    close(actual, official_images(pair, prompts, 2, 4.0, image=pictures, height=64, width=96))
    plain = our_images(pair, prompts, 2, 4.0, height=64, width=96)
    assert (actual - plain).abs().max() > 1e-3, "the references count"


def test_the_prompt_and_the_guidance_matter_to_the_random_model(pair: Pair) -> None:
    base = our_images(pair, PROMPTS[:1], 2, 1.0, height=64, width=96)
    assert (our_images(pair, PROMPTS[1:], 2, 1.0, height=64, width=96) - base).abs().max() > 1e-3
    assert (our_images(pair, PROMPTS[:1], 2, 4.0, height=64, width=96) - base).abs().max() > 1e-3


def test_one_step_makes_the_picture_that_diffusers_makes(pair: Pair) -> None:
    actual = our_images(pair, PROMPTS[:1], 1, 4.0, height=64, width=96)
    close(actual, official_images(pair, PROMPTS[:1], 1, 4.0, height=64, width=96))
