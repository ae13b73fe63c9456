"""Wan beside diffusers' own pipelines, in float32 on tiny random models: the same numbers."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from dsctl_core.families.wan.family import TEXT_TOKENS
from dsctl_core.families.wan.units import padded_text
from tests.dsctl_core.families.wan.conftest import FROM_IMAGE, FROM_TEXT, KINDS, SHIFT, SIZE, Pair, Pairs, clip, noisy
from tests.dsctl_core.families.wan.conftest import random as draw

PROMPTS = ["a red fox", "a small yellow star in the top left corner on a black background"]
UNCLEAN = [
    "  two\n\nspaces \t here ",
    "a &amp;amp; b &lt;c&gt;",
    "\u00e2\u20ac\u0153quoted\u00e2\u20ac\u009d",
    "\uff46\uff4f\uff58",
]


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def text(pair: Pair, prompts: str | list[str]) -> Tensor:
    with torch.no_grad():
        made = pair.ours.units[-1].process(pair.ours, prompts)
    return padded_text(made["prompt_embeds"], made["prompt_embeds_mask"])


def official_text(pair: Pair, prompts: str | list[str]) -> Tensor:
    with torch.no_grad():
        return pair.official.encode_prompt(prompts, None, False, max_sequence_length=TEXT_TOKENS)[0]


@pytest.mark.parametrize("prompt", ["", PROMPTS[0], PROMPTS, UNCLEAN], ids=["empty", "one", "two", "unclean"])
def test_text_embeddings(pairs: Pairs, prompt: str | list[str]) -> None:
    pair = pairs["t2v"]
    made = text(pair, prompt)
    close(made, official_text(pair, prompt))
    assert made.shape[1:] == (512, 16)
    assert made.abs().max() > 0.1


def test_only_real_tokens_of_a_prompt_are_kept_and_what_is_read_back_is_exactly_the_same(pairs: Pairs) -> None:
    pair = pairs["t2v"]
    with torch.no_grad():
        made = pair.ours.units[-1].process(pair.ours, PROMPTS)
    lengths = [len(ids) for ids in pair.ours.tokenizer(PROMPTS).input_ids]
    assert made["prompt_embeds"].shape[1] == max(lengths) < 40
    assert made["prompt_embeds_mask"].sum(dim=1).tolist() == lengths
    assert lengths[0] < lengths[1]
    noise_behind = made["prompt_embeds"].masked_fill(~made["prompt_embeds_mask"][..., None], 7.0)
    assert torch.equal(padded_text(noise_behind, made["prompt_embeds_mask"]), text(pair, PROMPTS))


def test_a_prompt_that_is_too_long_is_cut_and_said_so(pairs: Pairs, caplog: pytest.LogCaptureFixture) -> None:
    prompt = "red fox " * 600
    with caplog.at_level(logging.WARNING):
        close(text(pairs["t2v"], prompt), official_text(pairs["t2v"], prompt))
    assert "is cut to 512" in caplog.text
    caplog.clear()
    text(pairs["t2v"], PROMPTS)
    assert not caplog.text


@pytest.mark.parametrize("kind", ["t2v", "ti2v"])
@pytest.mark.parametrize("frames", [1, 5, 9])
def test_vae(pairs: Pairs, kind: str, frames: int) -> None:
    pair, pixels = pairs[kind], torch.rand(2, 3, frames, 32, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    vae = pair.official.vae
    mean, std = (torch.tensor(each).view(1, -1, 1, 1, 1) for each in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        latents = pair.ours.encode_pixels(pixels, False, None, None)
        close(latents, (vae.encode(pixels).latent_dist.mode() - mean) / std)
        close(pair.ours.decode_pixels(latents, False, None, None), vae.decode(latents * std + mean).sample)
    assert latents.shape == (2, *pair.ours.latent_space.latent_shape(32, 96, frames))


@pytest.mark.parametrize("kind", ["t2v", "ti2v"])
def test_tiles_are_of_the_same_size_in_pixels_in_both_directions(pairs: Pairs, kind: str) -> None:
    pair, pixels = pairs[kind], torch.rand(1, 3, 1, 128, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    sides: list[tuple[int, ...]] = []
    pair.ours.vae.encoder.register_forward_pre_hook(lambda _, given: sides.append(tuple(given[0].shape[-2:])))
    patch = pair.ours.vae.config.patch_size or 1
    with torch.no_grad():
        whole = pair.ours.encode_pixels(pixels, False, None, None)
        tiled = pair.ours.encode_pixels(pixels, True, 64, 32)
        assert max(max(each) for each in sides[1:]) * patch == 64 < 128 == max(sides[0]) * patch
        assert tiled.shape == whole.shape
        one, several = (pair.ours.decode_pixels(whole, on, 64, 32) for on in (False, True))
    assert one.shape == several.shape == pixels.shape
    assert (one - several).abs().mean() < 0.2
    assert not torch.equal(one, several)
    pair.ours.vae.encoder._forward_pre_hooks.clear()


@pytest.mark.parametrize("steps", [1, 2, 8, 50])
def test_sigmas(pairs: Pairs, steps: int) -> None:
    pair = pairs["t2v"]
    pair.ours.scheduler.set_timesteps(steps, dynamic_shift_len=pair.ours.tokens(480, 832, 81))
    pair.official.scheduler.set_timesteps(steps)
    close(pair.ours.scheduler.sigmas, pair.official.scheduler.sigmas[:-1], atol=1e-6)
    even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]
    close(pair.ours.scheduler.sigmas.double(), SHIFT * even / (1 + (SHIFT - 1) * even), atol=1e-6)


@pytest.mark.parametrize("kind", [*FROM_TEXT, "ti2v"])
def test_the_network_of_text_to_video(pairs: Pairs, kind: str) -> None:
    pair = pairs[kind]
    channels = pair.official.transformer.config.in_channels
    latents, embeds = draw(2, channels, 3, 2, 6), draw(2, 7, 16, seed=1)
    for timestep in (torch.tensor(903.5), torch.tensor([998.25, 903.5])):
        with torch.no_grad():
            made = pair.ours.call_model_fn(latents=latents, timestep=timestep, prompt_embeds=embeds)
            expected = pair.official.transformer(latents, timestep.expand(2), padded_text(embeds, None))[0]
        close(made, expected)
        assert made.abs().max() > 0.1


def given(pair: Pair, frames: int, **pictures: Any) -> dict[str, Tensor | None]:
    """What our units make of the frames that are given."""
    inputs = {"height": 32, "width": 96, "num_frames": frames, **pictures}
    with torch.no_grad():
        condition = pair.ours.units[5].process(pair.ours, **inputs)
        return condition | pair.ours.units[7].process(pair.ours, **pictures)


def pictures_of(kind: str, seed: int = 0) -> dict[str, Image.Image]:
    return {"input_image": noisy(seed)} | ({"end_image": noisy(seed + 1)} if kind == "flf2v" else {})


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("frames", [5, 9])
def test_condition_and_mask(pairs: Pairs, frames: int, both: bool) -> None:
    pair, end = pairs["i2v-a14b"], noisy(1) if both else None
    official = pair.from_image()
    first, last = (official.video_processor.preprocess(each, height=32, width=96) for each in (noisy(), noisy(1)))
    with torch.no_grad():
        _, expected = official.prepare_latents(
            first, 2, 16, 32, 96, frames, torch.float32, "cpu", last_image=last if both else None
        )
    made = given(pair, frames, input_image=[noisy(), noisy()], end_image=None if end is None else [end, end])
    close(made["condition"], expected)
    assert made["condition"][:, :4, 0].unique().tolist() == [1]
    assert made["condition"][:, 3, -1].unique().tolist() == [float(both)]
    assert made["image_embeds"] is None


@pytest.mark.parametrize("kind", ["i2v", "flf2v"])
def test_what_the_image_encoder_sees(pairs: Pairs, kind: str) -> None:
    pair = pairs[kind]
    pictures = pictures_of(kind)
    with torch.no_grad():
        expected = pair.from_image().encode_image(list(pictures.values()), "cpu")
    made = given(pair, 5, **pictures)["image_embeds"]
    assert made is not None
    close(made[0], expected)
    assert made.shape == (1, len(pictures), 257, 8)


@pytest.mark.parametrize("kind", FROM_IMAGE)
def test_the_network_of_image_to_video(pairs: Pairs, kind: str) -> None:
    pair = pairs[kind]
    latents, embeds, timestep = draw(2, 16, 2, 4, 12), draw(2, 7, 16, seed=1), torch.tensor([998.25, 950.0])
    both = {name: [picture, noisy(9)] for name, picture in pictures_of(kind).items()}
    made = given(pair, 5, **both)
    seen = made["image_embeds"]
    with torch.no_grad():
        velocity = pair.ours.call_model_fn(latents=latents, timestep=timestep, prompt_embeds=embeds, **made)
        expected = pair.official.transformer(
            torch.cat([latents, made["condition"]], dim=1),
            timestep,
            padded_text(embeds, None),
            None if seen is None else seen.flatten(0, 1),
        )[0]
    close(velocity, expected)
    assert velocity.shape == latents.shape


def test_per_token_timesteps_and_a_clean_first_frame(pairs: Pairs) -> None:
    pair = pairs["ti2v"]
    inputs = {"height": 32, "width": 96, "num_frames": 9, "input_image": [noisy(), None]}
    with torch.no_grad():
        made = pair.ours.units[6].process(pair.ours, **inputs)
    assert made["given_frames"].flatten(1).tolist() == [[True, False, False], [False] * 3]
    assert made["loss_mask"].flatten(1).tolist() == [[0, 1, 1], [1, 1, 1]]
    latents, embeds, timestep = draw(2, 48, 3, 2, 6), draw(2, 7, 16, seed=1), torch.tensor([903.5, 100.25])
    more = {name: made[name] for name in ("first_latents", "given_frames")}
    mask = torch.ones(2, 1, 3, 2, 6)
    mask[0, :, 0] = 0
    with torch.no_grad():
        velocity = pair.ours.call_model_fn(latents=latents, timestep=timestep, prompt_embeds=embeds, **more)
        hidden = (1 - mask) * made["first_latents"] + mask * latents
        tokens = (mask[:, 0, :, ::2, ::2] * timestep.view(2, 1, 1, 1)).flatten(1)
        expected = pair.official.transformer(hidden, tokens, padded_text(embeds, None))[0]
        alone = pair.ours.call_model_fn(latents=latents[1:], timestep=timestep[1:], prompt_embeds=embeds[1:])
    close(velocity, expected)
    close(velocity[1:], alone)
    assert tokens.shape == (2, 9)


def official_clip(pair: Pair, pictures: dict[str, Image.Image], cfg: list[float], noise: Tensor, steps: int) -> Tensor:
    """What diffusers makes, as a tensor (T, H, W, 3) in [0, 1]."""
    images = {"image": pictures["input_image"], "last_image": pictures.get("end_image")} if pictures else {}
    official = pair.from_image() if pictures else pair.official
    guidance = {"guidance_scale": cfg[0]} | ({"guidance_scale_2": cfg[1]} if len(cfg) > 1 else {})
    made = official(
        prompt=PROMPTS[0],
        negative_prompt=PROMPTS[1],
        latents=noise.clone(),
        num_inference_steps=steps,
        output_type="np",
        **SIZE,
        **guidance,
        **images,
    )
    return torch.from_numpy(made.frames[0])


def our_clip(pair: Pair, pictures: dict[str, Image.Image], cfg: Any, noise: Tensor, steps: int) -> Tensor:
    """What we make, likewise, before it is rounded to pixels."""
    kept: list[Tensor] = []
    decode = pair.ours.decode_pixels

    def keeping(*args: Any) -> Tensor:
        kept.append(decode(*args))
        return kept[-1]

    pair.ours.decode_pixels = keeping
    try:
        made = pair.ours(
            PROMPTS[0],
            negative_prompt=PROMPTS[1],
            cfg_scale=cfg,
            noise=noise,
            num_inference_steps=steps,
            **SIZE,
            **pictures,
        )
    finally:
        del pair.ours.decode_pixels
    assert len(made.frames) == SIZE["num_frames"]
    return kept[0][0].permute(1, 2, 3, 0) / 2 + 0.5


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "ti2v from an image"])
def test_a_whole_clip(pairs: Pairs, kind: str, guided: bool) -> None:
    name, _, image = kind.partition(" ")
    pair = pairs[name]
    pictures = pictures_of(name) if name in FROM_IMAGE or image else {}
    two = len(pair.ours.parts.denoisers) == 2
    cfg = ([4.0, 3.0] if two else [5.0]) if guided else [1.0, 1.0][: 1 + two]
    noise = draw(1, *pair.ours.latent_space.latent_shape(32, 96, 9), seed=3)
    made = our_clip(pair, pictures, cfg if two else cfg[0], noise, 2)
    close(made, official_clip(pair, pictures, cfg, noise, 2))
    assert made.std() > 0.05


@pytest.mark.parametrize("boundary", [0.75, 0.7501])
def test_a_level_exactly_at_the_boundary_is_the_business_of_the_denoiser_of_high_noise(
    pairs: Pairs, boundary: float
) -> None:
    pair = pairs["t2v-a14b"]
    before = pair.ours.parts, pair.official.config.boundary_ratio
    calls: list[str] = []
    hooks = [
        pair.ours.component(name).register_forward_pre_hook(lambda *_, name=name: calls.append(name))
        for name in ("dit", "dit_2")
    ]
    noise = draw(1, 16, 3, 4, 12, seed=3)
    try:
        pair.official.register_to_config(boundary_ratio=boundary)
        index = {"boundary_ratio": boundary, "transformer_2": ["diffusers", "WanTransformer3DModel"]}
        pair.ours.parts = pair.ours.family.parts(pair.ours.components, index)
        close(our_clip(pair, {}, [1.0, 1.0], noise, 2), official_clip(pair, {}, [1.0, 1.0], noise, 2))
    finally:
        pair.ours.parts = before[0]
        pair.official.register_to_config(boundary_ratio=before[1])
        for hook in hooks:
            hook.remove()
    assert pair.ours.scheduler.timesteps.tolist() == [1000.0, 750.0]
    assert calls == (["dit", "dit"] if boundary == 0.75 else ["dit", "dit_2"])


def test_noise_of_a_seed_is_that_of_diffusers(pairs: Pairs) -> None:
    pair = pairs["t2v"]
    shared, _, _ = pair.ours.run_units({**SIZE, "seed": [7], "cfg_scale": 1}, {"prompt": "a"}, {})
    expected = pair.official.prepare_latents(
        1, 16, 32, 96, 9, torch.float32, torch.device("cpu"), torch.Generator().manual_seed(7)
    )
    assert torch.equal(shared["noise"], expected)


def test_latents_of_a_clip_are_learned_as_they_are_encoded(pairs: Pairs) -> None:
    for kind in ("t2v", "ti2v"):
        pair, frames = pairs[kind], clip()
        pair.ours.scheduler.set_timesteps(training=True)
        rows = [{"video": frames, "prompt": "a", "seed": 1}]
        with torch.no_grad():
            shared, _, _ = pair.ours.run_units(*pair.ours.row_inputs(rows))
            pixels = pair.ours.clip_pixels(frames)
            expected = pair.ours.encode_pixels(pixels, False, None, None)
        assert torch.equal(shared["input_latents"], expected)
        assert shared["input_latents"].shape == (1, *pair.ours.latent_space.latent_shape(32, 96, 9))
