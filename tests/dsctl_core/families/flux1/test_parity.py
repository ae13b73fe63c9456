"""FLUX.1 beside diffusers' own three pipelines, in float32 on tiny random models: the same numbers."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dsctl_core.errors import UsageError
from dsctl_core.families.flux1.family import KONTEXT_SIZES
from dsctl_core.families.flux1.pipeline import model_fn_flux1
from dsctl_core.families.flux1.units import fitted
from dsctl_core.media.autoencoder_kl import decode, encode
from tests.dsctl_core.families.flux1.conftest import HEIGHT, PROMPTS, WIDTH, Pair, close, mask_of, noisy

STEPS = (1, 4, 50)
LONG = "red fox " * 300
TOKENS = {"dev": 512, "schnell": 256, "kontext": 512, "fill": 512}


def embed(pair: Pair, prompts: str | list[str]) -> dict[str, Any]:
    with torch.no_grad():
        found = pair.ours.units[-1].process(pair.ours, prompts)
    assert found.pop("prompt_embeds_mask") is None
    return found


@pytest.mark.parametrize("prompts", [[""], PROMPTS, [LONG]], ids=["empty", "two", "long"])
def test_prompt_embeddings(pair: Pair, prompts: list[str]) -> None:
    found, length = embed(pair, prompts), TOKENS[pair.kind]
    with torch.no_grad():
        embeds, pooled, _ = pair.official.encode_prompt(list(prompts), max_sequence_length=length)
    close(found["prompt_embeds"], embeds)
    close(found["pooled_embeds"], pooled)
    assert embeds.shape[1] == length
    assert embeds.std() > 0.05
    assert pooled.std() > 0.05


def test_a_prompt_that_is_too_long_is_cut_and_said_so(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        embed(pair, LONG)
    assert f"the model takes {TOKENS[pair.kind]}" in caplog.text
    caplog.clear()
    embed(pair, PROMPTS)
    assert not caplog.text


@pytest.mark.parametrize(("batch", "size"), [(1, (16, 16)), (2, (48, 80)), (2, (112, 32))], ids=str)
def test_the_network_with_all_that_it_reads(pair: Pair, batch: int, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    height, width = size[0] // 8, size[1] // 8
    latents = torch.randn(batch, 16, height, width, generator=generator)
    timestep = torch.tensor([900.0, 125.0])[:batch]
    guidance = pair.ours.guidance(None)
    prompts = embed(pair, PROMPTS[:batch])
    pack, ids = pair.official._pack_latents, pair.official._prepare_latent_image_ids
    tokens, places = pack(latents, batch, 16, height, width), ids(batch, height // 2, width // 2, "cpu", torch.float32)
    more: dict[str, Any] = {}
    read = tokens
    if pair.kind == "kontext":
        references = [torch.randn(batch, 16, *sides, generator=generator) for sides in ((4, 10), (6, 6))]
        packed = [pack(each, batch, 16, *each.shape[2:]) for each in references]
        more = {"edit_latents": torch.cat(packed, dim=1), "edit_sizes": ((4, 10), (6, 6))}
        read = torch.cat([tokens, *packed], dim=1)
        for each in references:
            own = ids(batch, each.shape[2] // 2, each.shape[3] // 2, "cpu", torch.float32)
            own[:, 0] = 1
            places = torch.cat([places, own])
    if pair.kind == "fill":
        masked, mask = (torch.randn(batch, n, height, width, generator=generator) for n in (16, 64))
        more = {"fill_latents": torch.cat([masked, mask], dim=1)}
        read = torch.cat([tokens, pack(masked, batch, 16, height, width), pack(mask, batch, 64, height, width)], dim=2)
    with torch.no_grad():
        expected = pair.official.transformer(
            hidden_states=read,
            timestep=timestep / 1000,
            guidance=None if guidance is None else torch.full((batch,), guidance),
            pooled_projections=prompts["pooled_embeds"],
            encoder_hidden_states=prompts["prompt_embeds"],
            txt_ids=torch.zeros(TOKENS[pair.kind], 3),
            img_ids=places,
            return_dict=False,
        )[0][:, : tokens.shape[1]]
        actual = model_fn_flux1(pair.ours.dit, latents, timestep, embedded_guidance=guidance, **prompts, **more)
    close(actual, pair.official._unpack_latents(expected, *size, 8))
    assert actual.std() > 0.05
    assert (guidance is None) == (pair.kind == "schnell")


@pytest.mark.parametrize("steps", STEPS)
def test_sigmas_are_shifted_by_the_size_and_those_of_schnell_not_at_all(pair: Pair, steps: int) -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler, config = pair.official.scheduler, pair.official.scheduler.config
    plain = torch.linspace(1, 1 / steps, steps)
    for tokens in (15, 4096, 6400):
        pair.ours.scheduler.set_timesteps(steps, dynamic_shift_len=tokens)
        line = (config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift)
        scheduler.set_timesteps(sigmas=plain.tolist(), mu=calculate_shift(tokens, *line))
        close(pair.ours.scheduler.sigmas, scheduler.sigmas[:-1], atol=1e-6)
        same = torch.allclose(pair.ours.scheduler.sigmas, plain, atol=1e-6)
        assert same == (pair.kind == "schnell" or steps == 1)


def test_vae(dev: Pair) -> None:
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae = dev.official.vae
    with torch.no_grad():
        actual = encode(dev.ours.vae, images, tiled=False, tile_size=512, tile_stride=384)
        raw = vae.encode(images).latent_dist.mode()
        close(actual, (raw - vae.config.shift_factor) * vae.config.scaling_factor)
        back = decode(dev.ours.vae, actual, tiled=False, tile_size=512, tile_stride=384)
        close(back, vae.decode(raw).sample.clamp(-1, 1), atol=1e-4)
    assert (vae.config.shift_factor, vae.config.scaling_factor) == (0.1159, 0.3611)


@pytest.mark.parametrize(("prompts", "cfg_scale"), [(PROMPTS[:1], 3.0), (PROMPTS, 1.0)], ids=["guided", "batch"])
@pytest.mark.parametrize("kind", ["dev", "schnell", "kontext"])
def test_whole_images_from_a_prompt(pairs: dict[str, Pair], kind: str, prompts: list[str], cfg_scale: float) -> None:
    pair = pairs[kind]
    area = {"max_area": HEIGHT * WIDTH} if kind == "kontext" else {}
    actual = pair.our_images(prompts, cfg_scale)
    close(actual, pair.official_images(prompts, cfg_scale, **area))
    assert actual.std() > 0.05


def test_the_prompt_and_both_kinds_of_guidance_matter_to_the_random_model(dev: Pair) -> None:
    plain = dev.our_images(PROMPTS[:1], 1.0)
    others = [dev.our_images(PROMPTS[1:], 1.0), dev.our_images(PROMPTS[:1], 3.0)]
    others.append(dev.our_images(PROMPTS[:1], 1.0, embedded_guidance=1.0))
    assert all((other - plain).abs().max() > 1e-3 for other in others)


@pytest.mark.parametrize(("size", "cfg_scale"), [((50, 60), 1.0), ((200, 90), 3.0), ((30, 99), 1.0)], ids=str)
def test_edited_images(kontext: Pair, size: tuple[int, int], cfg_scale: float) -> None:
    reference = noisy(size)
    actual = kontext.our_images(PROMPTS[:1], cfg_scale, edit_image=reference)
    expected = kontext.official_images(PROMPTS[:1], cfg_scale, image=reference, max_area=HEIGHT * WIDTH)
    close(actual, expected)
    assert (actual - kontext.our_images(PROMPTS[:1], cfg_scale)).abs().max() > 1e-3


def test_edited_images_in_a_batch_with_a_reference_each(kontext: Pair) -> None:
    references = [noisy((100, 60), 1), noisy((100, 60), 2)]
    actual = kontext.our_images(PROMPTS, 1.0, edit_image=[[each] for each in references])
    close(actual, kontext.official_images(PROMPTS, 1.0, image=references, max_area=HEIGHT * WIDTH))
    assert (actual[0] - actual[1]).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(600, 400), (2000, 100), (45, 63)], ids=str)
def test_references_are_brought_to_the_one_of_17_sizes_that_diffusers_takes(
    pairs: dict[str, Pair], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.pipelines.flux import pipeline_flux_kontext

    assert list(KONTEXT_SIZES) == pipeline_flux_kontext.PREFERRED_KONTEXT_RESOLUTIONS
    seen: list[Any] = []

    def stop(self: Any, image: Tensor, *_: Any, **__: Any) -> None:
        seen.append(image)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline_flux_kontext.FluxKontextPipeline, "prepare_latents", stop)
    picture = noisy(size)
    with pytest.raises(KeyboardInterrupt):
        pairs["kontext"].official(picture, "a", num_inference_steps=1)
    close(pairs["kontext"].ours.preprocess_image(fitted(picture, KONTEXT_SIZES)), seen[0], atol=1e-6)
    assert tuple(reversed(seen[0].shape[2:])) in KONTEXT_SIZES


def test_a_reference_that_is_too_small_is_refused() -> None:
    with pytest.raises(UsageError, match="15x200, but each side needs 16 pixels"):
        fitted(noisy((15, 200)), KONTEXT_SIZES)


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "batch"])
def test_filled_images(fill: Pair, prompts: list[str]) -> None:
    picture, mask = noisy((WIDTH, HEIGHT)), mask_of((WIDTH, HEIGHT))
    assert len(set(np.array(mask).flatten().tolist())) > 20, "grey is tried too"
    noise = torch.cat([torch.randn(1, 16, 6, 10, generator=torch.Generator().manual_seed(3 + n)) for n in range(2)])
    noise = noise[: len(prompts)]
    tokens = fill.official._pack_latents(noise, len(prompts), 16, 6, 10)
    actual = fill.our_images(prompts, 1.0, input_image=picture, inpaint_mask=mask)
    close(actual, fill.official_images(prompts, 1.0, image=picture, mask_image=mask, latents=tokens))
    other = fill.our_images(prompts, 1.0, input_image=picture, inpaint_mask=Image.new("L", mask.size, 255))
    assert (actual - other).abs().max() > 1e-3


def test_fill_reads_where_the_mask_is_and_what_is_around_it_but_keeps_no_latents(fill: Pair) -> None:
    picture, mask = noisy((WIDTH, HEIGHT)), mask_of((WIDTH, HEIGHT))
    hidden = Image.composite(Image.new("RGB", picture.size, "blue"), picture, mask.point(lambda x: 255 * (x >= 128)))
    inputs = {"inpaint_mask": mask, "embedded_guidance": 30.0}
    one = fill.our_images(PROMPTS[:1], 1.0, input_image=picture, **inputs)
    assert torch.equal(one, fill.our_images(PROMPTS[:1], 1.0, input_image=hidden, **inputs)), "what is hidden is hidden"
    shared, _, _ = fill.ours.run_units(
        {"height": HEIGHT, "width": WIDTH, "seed": [1], "input_image": picture, **inputs}, {"prompt": "a"}, {}
    )
    assert "latents_mask" not in shared
    assert shared["fill_latents"].shape == (1, 80, 6, 10)
    assert set(shared["fill_latents"][:, 16:].unique().tolist()) == {0.0, 1.0}
