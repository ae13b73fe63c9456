"""Qwen-Image from a picture: strength, inpainting, tiles, and inputs that do not fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dsctl_core.checkpoint.readers import Readers
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.qwen_image.latents import decode, encode
from dsctl_core.families.qwen_image.pipeline import QwenImagePipeline

SIZE: dict[str, Any] = {"height": 64, "width": 96}
FAST: dict[str, Any] = {**SIZE, "num_inference_steps": 2, "cfg_scale": 1.0, "seed": 7}


def drawing(seed: int = 0, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A smooth random picture."""
    rough = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC)


def mask(left: int, right: int | None = None) -> Image.Image:
    """A mask of two halves, each of one grey level."""
    image = Image.new("L", (96, 64), left)
    image.paste(left if right is None else right, (48, 0, 96, 64))
    return image


def pixels(image: Any) -> np.ndarray:
    return np.array(image).astype(np.int32)


def round_trip(pipe: QwenImagePipeline, image: Image.Image) -> np.ndarray:
    """What the VAE alone makes of a picture."""
    with torch.no_grad():
        latents = encode(pipe.vae, pipe.preprocess_image(image), tiled=False, tile_size=256, tile_stride=192)
        decoded = decode(pipe.vae, latents, tiled=False, tile_size=256, tile_stride=192)
    return pixels(pipe.vae_output_to_image(decoded)[0])


def start(pipe: QwenImagePipeline, strength: float, steps: int = 4) -> tuple[Tensor, Tensor]:
    """The latents that denoising starts from, and those of the input picture."""
    pipe.scheduler.set_timesteps(steps, strength, dynamic_shift_len=24)
    inputs = {**SIZE, "seed": 7, "input_image": drawing()}
    with torch.no_grad():
        for unit in pipe.units[:4]:
            inputs, _, _ = pipe.unit_runner(unit, pipe, inputs, {}, {})
    return inputs["latents"], inputs["input_latents"]


def test_full_strength_forgets_the_input_picture(pipe: QwenImagePipeline) -> None:
    assert np.array_equal(pixels(pipe("a", input_image=drawing(), **FAST)), pixels(pipe("a", **FAST)))


def test_partial_strength_depends_on_the_picture_the_prompt_and_the_seed(pipe: QwenImagePipeline) -> None:
    base = pixels(pipe("a", input_image=drawing(), denoising_strength=0.6, **FAST))
    others = (
        pipe("a", input_image=drawing(1), denoising_strength=0.6, **FAST),
        pipe("a big house", input_image=drawing(), denoising_strength=0.6, **FAST),
        pipe("a", input_image=drawing(), denoising_strength=0.6, **{**FAST, "seed": 8}),
        pipe("a", input_image=drawing(), denoising_strength=0.9, **FAST),
    )
    for other in others:
        assert not np.array_equal(pixels(other), base)


def test_the_less_strength_the_nearer_the_start_is_to_the_picture(pipe: QwenImagePipeline) -> None:
    distances = []
    for strength in (0.05, 0.3, 0.6, 1.0):
        begin, picture = start(pipe, strength)
        distances.append((begin - picture).norm().item())
    assert distances == sorted(distances)
    assert distances[0] < 0.1 * distances[-1]


@pytest.mark.parametrize("strength", [0.3, 0.6])
def test_the_start_does_not_depend_on_the_number_of_steps(pipe: QwenImagePipeline, strength: float) -> None:
    torch.testing.assert_close(start(pipe, strength, steps=1)[0], start(pipe, strength, steps=30)[0])


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("cfg_scale", [1.0, 4.0])
def test_a_black_mask_returns_what_the_vae_makes_of_the_picture(
    pipe: QwenImagePipeline, strength: float, cfg_scale: float
) -> None:
    image = drawing()
    options = {**FAST, "cfg_scale": cfg_scale, "num_inference_steps": 5}
    made = pixels(pipe("a", input_image=image, inpaint_mask=mask(0), denoising_strength=strength, **options))
    # A level may fall on the other side of a rounding boundary, no more.
    assert np.abs(made - round_trip(pipe, image)).max() <= 1
    assert (made != round_trip(pipe, image)).mean() < 0.01


def test_a_white_mask_changes_nothing(pipe: QwenImagePipeline) -> None:
    options = {**FAST, "input_image": drawing(), "denoising_strength": 0.6}
    assert np.array_equal(pixels(pipe("a", inpaint_mask=mask(255), **options)), pixels(pipe("a", **options)))


def test_inpainting_keeps_the_black_half_and_paints_the_white(pipe: QwenImagePipeline) -> None:
    with torch.no_grad():
        picture = encode(pipe.vae, pipe.preprocess_image(drawing()), tiled=False, tile_size=256, tile_stride=192)
        latents = pipe.generate(
            prompt="a",
            negative_prompt="",
            num_inference_steps=4,
            denoising_strength=1.0,
            progress_bar_cmd=lambda timesteps: timesteps,
            shared={**SIZE, "cfg_scale": 1.0, "seed": [7], "input_image": drawing(), "inpaint_mask": mask(0, 255)},
        )
    torch.testing.assert_close(latents[..., :6], picture[..., :6], atol=1e-5, rtol=0)
    assert ((latents - picture)[..., 6:].abs() > 0.1).float().mean() > 0.5


def test_one_picture_serves_every_prompt_and_many_serve_one_each(pipe: QwenImagePipeline) -> None:
    options = {**FAST, "denoising_strength": 0.6}
    one, two = (pixels(pipe("a", input_image=drawing(seed), **options)) for seed in (0, 1))
    shared = pipe(["a", "a"], input_image=drawing(0), **options)
    each = pipe(["a", "a"], input_image=[drawing(0), drawing(1)], **options)
    for made, expected in zip((*shared, *each), (one, one, one, two), strict=True):
        assert np.abs(pixels(made) - expected).max() <= 1


@contextmanager
def watching(model: Any, name: str) -> Iterator[list[int]]:
    """Count the calls of a method."""
    calls: list[int] = []
    method = getattr(model, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return method(*args, **kwargs)

    setattr(model, name, counted)
    try:
        yield calls
    finally:
        delattr(model, name)


def test_tiles_change_nothing_when_the_picture_fits_in_one(pipe: QwenImagePipeline) -> None:
    options = {**FAST, "input_image": drawing(), "denoising_strength": 0.6}
    whole = pipe("a", **options)
    with watching(pipe.vae, "tiled_decode") as calls:
        assert np.array_equal(pixels(pipe("a", tiled=True, **options)), pixels(whole))
    assert not calls


@pytest.mark.parametrize(("size", "stride"), [(64, 48), (64, 64), (72, 40)])
def test_tiles_come_close_to_the_whole_when_there_are_several(pipe: QwenImagePipeline, size: int, stride: int) -> None:
    images = pipe.preprocess_image(drawing(size=(160, 128)))
    whole = {"tiled": False, "tile_size": size, "tile_stride": stride}
    tiled = {**whole, "tiled": True}
    with torch.no_grad(), watching(pipe.vae, "tiled_encode") as encodes, watching(pipe.vae, "tiled_decode") as decodes:
        latents = encode(pipe.vae, images, **whole)
        latents_by_tiles = encode(pipe.vae, images, **tiled)
        decoded = decode(pipe.vae, latents, **whole)
        decoded_by_tiles = decode(pipe.vae, latents, **tiled)
    assert (len(encodes), len(decodes)) == (1, 1)
    assert latents_by_tiles.shape == latents.shape
    assert decoded_by_tiles.shape == decoded.shape
    # Random weights see further than trained ones; what counts is that every tile is in its place.
    for actual, expected in ((latents_by_tiles, latents), (decoded_by_tiles, decoded)):
        correlation = torch.corrcoef(torch.stack([actual.flatten(), expected.flatten()]))[0, 1]
        assert correlation > 0.9


def test_tiles_stay_in_the_range_of_pixels(pipe: QwenImagePipeline) -> None:
    glaring = 20 * torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert decode(pipe.vae, glaring, tiled=True, tile_size=64, tile_stride=48).abs().max() == 1


def test_the_vae_is_left_as_it_was(pipe: QwenImagePipeline) -> None:
    before = (pipe.vae.use_tiling, pipe.vae.tile_sample_min_height, pipe.vae.tile_sample_stride_width)
    pipe("a", tiled=True, tile_size=64, tile_stride=48, **FAST)
    with pytest.raises(UsageError):
        pipe("a", tiled=True, tile_size=64, tile_stride=100, **FAST)
    assert (pipe.vae.use_tiling, pipe.vae.tile_sample_min_height, pipe.vae.tile_sample_stride_width) == before


@pytest.mark.parametrize(("size", "stride"), [(60, 48), (64, 44), (64, 72), (0, 0), (64, -8)])
def test_impossible_tiles_are_refused(pipe: QwenImagePipeline, size: int, stride: int) -> None:
    with pytest.raises(UsageError, match=f"a tile of {size} with stride {stride}"):
        pipe("a", tiled=True, tile_size=size, tile_stride=stride, **FAST)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"height": 100}, "height 100 is not a multiple of 16"),
        ({"width": 8}, "width 8 is not a multiple of 16"),
        ({"input_image": drawing(size=(64, 64))}, "input image is 64x64, but the width and height asked for are 96x64"),
        ({"input_image": drawing(), "inpaint_mask": Image.new("L", (8, 8))}, "inpaint mask is 8x8"),
        ({"inpaint_mask": mask(255)}, "an inpaint mask needs an input image"),
        ({"input_image": drawing(), "denoising_strength": 0.0}, "denoising strength must be above 0"),
        ({"num_inference_steps": 0}, "inference steps must be at least 1, not 0"),
        ({"noise": torch.zeros(1, 16, 4, 4)}, r"the noise is \(1, 16, 4, 4\)"),
        ({"seed": [1, 2]}, "2 seeds for 1 prompt"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompt"),
        ({"input_image": [drawing(), drawing()]}, "2 input images for a batch of 1"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(pipe: QwenImagePipeline, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        pipe("a", **{**FAST, **options})
    assert caught.value.hint


@pytest.mark.parametrize("name", ["dit", "vae", "text_encoder"])
def test_a_component_that_was_not_loaded_is_named(
    pipe: QwenImagePipeline, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(pipe._modules, name, None)
    with pytest.raises(DsctlError, match=f"needs the {name} of Qwen-Image, which was not loaded"):
        pipe("a", **FAST)


def test_a_tokenizer_that_was_not_loaded_is_named(pipe: QwenImagePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "readers", Readers(pipe.family))
    with pytest.raises(DsctlError, match="no tokenizer"):
        pipe("a", **FAST)
