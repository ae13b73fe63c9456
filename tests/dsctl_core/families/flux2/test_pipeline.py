"""FLUX.2's pipeline: pictures to edit, batches of them, pictures to start from, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dsctl_core.checkpoint.readers import Readers
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.flux2.latents import decode, encode
from tests.dsctl_core.families.flux2.conftest import Pair

SMALL: dict[str, Any] = {"height": 32, "width": 48, "num_inference_steps": 2, "cfg_scale": 1.0, "seed": 1}


def noisy(size: tuple[int, int], seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size)


def difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.array(a).astype(float) - np.array(b).astype(float)).max())


def test_each_prompt_of_a_batch_can_have_its_own_reference_pictures(pair: Pair) -> None:
    own = [[noisy((32, 32), 1), noisy((48, 32), 2)], [noisy((32, 32), 3), noisy((48, 32), 4)]]
    together = pair.ours(["a", "b"], edit_image=own, **SMALL)
    for made, prompt, pictures in zip(together, ("a", "b"), own, strict=True):
        assert difference(made, pair.ours(prompt, edit_image=pictures, **SMALL)) <= 1
    shared = pair.ours(["a", "b"], edit_image=own[0], **SMALL)
    assert difference(shared[0], together[0]) <= 1
    assert difference(shared[1], together[1]) > 0


def test_the_order_of_reference_pictures_counts(klein: Pair) -> None:
    pictures = [noisy((32, 32), 1), noisy((32, 32), 2)]
    assert difference(
        klein.ours("a", edit_image=pictures, **SMALL), klein.ours("a", edit_image=pictures[::-1], **SMALL)
    )


def test_one_reference_picture_is_a_list_of_one(klein: Pair) -> None:
    picture = noisy((32, 32))
    assert difference(klein.ours("a", edit_image=picture, **SMALL), klein.ours("a", edit_image=[picture], **SMALL)) == 0


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([], "list of reference pictures is empty"),
        ([noisy((8, 40))], "8x40, but each side needs 16"),
        ([[noisy((32, 32))], [noisy((48, 32))]], "different numbers or sizes"),
        ([[noisy((32, 32))], [noisy((32, 32))] * 2], "different numbers or sizes"),
    ],
)
def test_reference_pictures_that_cannot_be_used_are_refused(klein: Pair, pictures: Any, message: str) -> None:
    with pytest.raises(DsctlError, match=message):
        klein.ours(["a", "b"], edit_image=pictures, **SMALL)


def test_embedded_guidance_is_for_networks_that_take_it(klein: Pair, dev: Pair) -> None:
    with pytest.raises(UsageError, match="no embedded guidance"):
        klein.ours("a", embedded_guidance=3.0, **SMALL)
    assert (klein.ours.guidance(None), dev.ours.guidance(None), dev.ours.guidance(2.5)) == (None, 4.0, 2.5)
    default = dev.ours("a", **SMALL)
    assert difference(default, dev.ours("a", embedded_guidance=4.0, **SMALL)) == 0
    assert difference(default, dev.ours("a", embedded_guidance=1.0, **SMALL)) > 0


def test_the_strength_says_how_much_of_the_input_image_is_left(klein: Pair) -> None:
    picture = noisy((48, 32))
    vae = klein.ours.component("vae")
    with torch.no_grad():
        latents = encode(vae, klein.ours.preprocess_image(picture), False, 512, 384)
        kept = klein.ours.vae_output_to_image(decode(vae, latents, False, 512, 384))[0]
    distances = [
        np.abs(
            np.array(klein.ours("a", input_image=picture, denoising_strength=strength, **SMALL)).astype(float)
            - np.array(kept)
        ).mean()
        for strength in (0.0005, 0.3, 0.9)
    ]
    assert distances[0] < 1
    assert distances == sorted(distances)
    assert distances[2] > 3


def test_inpainting_keeps_what_is_black_in_the_mask(klein: Pair) -> None:
    picture, mask = noisy((64, 32)), Image.new("L", (64, 32))
    mask.paste(255, (32, 0, 64, 32))
    settings = {**SMALL, "width": 64}
    shared, posi, nega = (
        {**settings, "input_image": picture, "inpaint_mask": mask},
        {"prompt": "a"},
        {"negative_prompt": ""},
    )
    klein.ours.scheduler.set_timesteps(4, dynamic_shift_len=8)
    with torch.no_grad():
        sides = klein.ours.run_units(shared, posi, nega)
        made = klein.ours.denoise(*sides, cfg_scale=1)
    left = (made - sides[0]["input_latents"]).abs().amax(dim=(0, 1, 2))
    assert left[:2].max() < 1e-5
    assert left[2:].min() > 0.1


def test_a_tile_alone_is_what_it_is_in_the_picture_where_no_other_overlaps_it(klein: Pair) -> None:
    images = klein.ours.preprocess_image(noisy((160, 96)))
    vae = klein.ours.component("vae")
    before = (vae.use_tiling, vae.tile_sample_min_size)
    with torch.no_grad():
        whole, tiled = (encode(vae, images, on, 64, 48) for on in (False, True))
        back, in_tiles = (decode(vae, whole, on, 64, 48) for on in (False, True))
        corner = decode(vae, whole[:, :, :4, :4], False, 64, 48)  # the first tile, of 64 pixels
        torch.testing.assert_close(in_tiles[:, :, :48, :48], corner[:, :, :48, :48], atol=1e-5, rtol=0)
        corner = encode(vae, images[:, :, :64, :64], False, 64, 48)
        torch.testing.assert_close(tiled[:, :, :3, :3], corner[:, :, :3, :3], atol=1e-5, rtol=0)
    assert (whole.shape, back.shape) == (tiled.shape, in_tiles.shape) == ((1, 128, 6, 10), (1, 3, 96, 160))
    assert (back - in_tiles).abs().max() > 1e-3
    assert (vae.use_tiling, vae.tile_sample_min_size) == before


@pytest.mark.parametrize(("size", "stride"), [(64, 64), (40, 30), (0, 0)])
def test_tiles_that_this_vae_cannot_have_are_refused(klein: Pair, size: int, stride: int) -> None:
    with pytest.raises(UsageError, match="not possible"):
        klein.ours("a", tiled=True, tile_size=size, tile_stride=stride, **SMALL)


def test_a_size_that_is_not_a_multiple_of_16_is_refused(klein: Pair) -> None:
    with pytest.raises(UsageError, match="height 40 is not a multiple of 16"):
        klein.ours("a", **{**SMALL, "height": 40})


def test_noise_of_another_size_is_refused(klein: Pair) -> None:
    with pytest.raises(UsageError, match="the noise is"):
        klein.ours("a", noise=torch.zeros(1, 32, 2, 3), **SMALL)


def test_a_tokenizer_without_a_chat_template_is_refused(klein: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(klein.ours.tokenizer, "chat_template", None)
    with pytest.raises(DsctlError, match="no chat template"):
        klein.ours("a", **SMALL)
    monkeypatch.setattr(klein.ours, "readers", Readers(klein.ours.family))
    with pytest.raises(DsctlError, match="no tokenizer"):
        klein.ours("a", **SMALL)
