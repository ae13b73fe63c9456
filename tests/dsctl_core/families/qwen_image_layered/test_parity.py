"""Qwen-Image-Layered beside diffusers' own pipeline, in float32 on a tiny random model: the same numbers."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dsctl_core.families.qwen_image_layered.captions import QUESTION
from dsctl_core.families.qwen_image_layered.latents import decode
from dsctl_core.families.qwen_image_layered.pipeline import fitted
from dsctl_core.pipeline import no_progress_bar
from tests.dsctl_core.families.qwen_image_layered.conftest import Pair, layer, rgba

PROMPT, OTHER = "a fox in the snow", "a small yellow star in the top left corner of a blue field"


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def test_prompt_embeddings(pair: Pair) -> None:
    for prompt in (PROMPT, "", [PROMPT, OTHER]):
        with torch.no_grad():
            found = pair.ours.units[-1].process(pair.ours, prompt)
            embeds, mask = pair.official.encode_prompt(prompt)
        if mask is None:
            assert found["prompt_embeds_mask"] is None
        else:
            assert torch.equal(found["prompt_embeds_mask"], mask.bool())
        close(found["prompt_embeds"], embeds)


@pytest.mark.parametrize("size", [(16, 16), (48, 80)])
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_transformer_output(pair: Pair, layers: int, size: tuple[int, int]) -> None:
    height, width = size[0] // 8, size[1] // 8
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, layers + 1, 16, height, width, generator=generator)
    shown = torch.randn(2, 1, 16, height, width, generator=generator)
    timestep = torch.tensor([713.25, 20.0])
    official, pack = pair.official, pair.official._pack_latents
    tokens = [pack(each, 2, 16, height, width, each.shape[1]) for each in (latents, shown)]
    with torch.no_grad():
        embeds, mask = official.encode_prompt([PROMPT, OTHER])
        expected = official.transformer(
            hidden_states=torch.cat(tokens, dim=1),
            timestep=timestep / 1000,
            encoder_hidden_states=embeds,
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, height // 2, width // 2)] * (layers + 2)] * 2,
            additional_t_cond=torch.tensor([0, 0]),
            return_dict=False,
        )[0][:, : tokens[0].shape[1]]
        actual = pair.ours.call_model_fn(
            latents=latents,
            timestep=timestep,
            prompt_embeds=embeds,
            prompt_embeds_mask=mask,
            edit_latents=shown[:, 0],
        )
    close(actual, official._unpack_latents(expected, *size, layers, 8).transpose(1, 2))
    assert actual.std() > 0.1, "the random model predicts next to nothing, so this proves nothing"


@pytest.mark.parametrize(("height", "width"), [(640, 640), (1024, 1024), (512, 800), (64, 96)])
@pytest.mark.parametrize("steps", [2, 50])
def test_noise_levels(pair: Pair, height: int, width: int, steps: int) -> None:
    tokens = pair.ours.tokens(height, width)
    assert tokens == height * width // 256
    theirs = pair.official.scheduler
    theirs.set_timesteps(sigmas=np.linspace(1.0, 0, steps + 1)[:-1], mu=(tokens / 256) ** 0.5)
    pair.ours.scheduler.set_timesteps(steps, dynamic_shift_len=tokens)
    close(pair.ours.scheduler.sigmas, theirs.sigmas[:-1], atol=1e-6)


def test_transparent_pictures_through_the_vae(pair: Pair) -> None:
    picture = layer(96, 64, 3)
    with torch.no_grad():
        theirs = pair.official._encode_vae_image(rgba(picture), None)
        ours = pair.ours.encode_pictures([picture], False, None, None)
        close(ours, theirs[:, :, 0])
        mean, std = (
            torch.tensor(values).view(1, 16, 1, 1, 1)
            for values in (pair.official.vae.config.latents_mean, pair.official.vae.config.latents_std)
        )
        close(
            decode(pair.ours.vae, ours[:, None], False, 256, 192)[:, 0],
            pair.official.vae.decode(theirs * std + mean).sample[:, :, 0],
        )
    assert ours.std() > 0.05


def our_latents(pair: Pair, picture: Any, layers: int, cfg: float) -> Tensor:
    shown = fitted(picture, *pair.official.image_processor.get_default_height_width(picture)[::-1])
    with torch.no_grad():
        return pair.ours.generate(
            prompt=PROMPT,
            negative_prompt="blue",
            num_inference_steps=2,
            denoising_strength=1.0,
            progress_bar_cmd=no_progress_bar,
            shared={
                "cfg_scale": cfg,
                "height": shown.height,
                "width": shown.width,
                "seed": 3,
                "layer_num": layers,
                "edit_image": [shown],
            },
        )


def official_call(pair: Pair, picture: Any, layers: int, cfg: float, **options: Any) -> Any:
    return pair.official(
        image=picture,
        prompt=PROMPT,
        negative_prompt="blue" if cfg > 1 else None,
        true_cfg_scale=cfg,
        layers=layers,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(3),
        cfg_normalize=True,
        **options,
    ).images


@pytest.mark.parametrize("size", [(64, 64), (96, 32)])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("layers", [1, 3])
def test_whole_layers(pair: Pair, layers: int, cfg: float, size: tuple[int, int]) -> None:
    picture = layer(*size, 7)
    latents = our_latents(pair, picture, layers, cfg)
    with torch.no_grad():
        actual = decode(pair.ours.vae, latents[:, 1:], False, 256, 192)[0] * 0.5 + 0.5
    (expected,) = official_call(pair, picture, layers, cfg, output_type="pt")
    assert actual.shape == (layers, 4, picture.height, picture.width)
    close(actual, expected)
    assert actual.std() > 0.05


def test_without_layers_the_whole_picture_is_made(pair: Pair) -> None:
    picture = layer(64, 64, 7)
    seen: list[Tensor] = []
    options = {
        "output_type": "latent",
        "callback_on_step_end": lambda *given: seen.append(given[3]["latents"]) or {},
    }
    with suppress(UnboundLocalError):  # diffusers 0.42 makes latents, but does not return them
        official_call(pair, picture, 0, 4.0, **options)
    assert len(seen) == 2
    expected = pair.official._unpack_latents(seen[-1], 64, 64, 0, 8).transpose(1, 2)
    close(our_latents(pair, picture, 0, 4.0), expected)
    made = pair.ours(PROMPT, edit_image=picture, layers=0, num_inference_steps=1, seed=0)
    assert (made.size, made.mode) == ((64, 64), "RGBA")


def test_without_a_prompt_the_caption_is_that_of_diffusers(pair: Pair) -> None:
    assert QUESTION.format("<|image_pad|>") == pair.official.image_caption_prompt_en
    picture = layer(100, 50, 2)
    size = {"width": 96, "height": 32}
    theirs = pair.official.get_image_caption(fitted(picture, **size), use_en_prompt=True)
    assert pair.ours.caption(picture, size["height"], size["width"]) == theirs
    assert theirs != pair.official.get_image_caption(layer(96, 32, 5), use_en_prompt=True), "the picture is seen"
    options: dict[str, Any] = {"edit_image": picture, "layers": 1, "num_inference_steps": 1, "seed": 0, **size}
    captioned, prompted = (pair.ours(prompt, **options).layers[0].tobytes() for prompt in (None, theirs))
    assert captioned == prompted != pair.ours("a fox", **options).layers[0].tobytes()


@pytest.mark.parametrize("size", [(100, 50), (64, 64), (37, 93)])
def test_a_picture_is_resized_as_in_diffusers(pair: Pair, size: tuple[int, int]) -> None:
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_layered

    picture = layer(*size, 4)
    width, height = pipeline_qwenimage_layered.calculate_dimensions(0, size[0] / size[1])
    theirs = pair.official.image_processor.resize(picture, height, width)
    assert fitted(picture, width, height).tobytes() == theirs.tobytes()
    made = pair.ours(PROMPT, edit_image=picture, layers=2, num_inference_steps=1, seed=0)
    assert [each.size for each in made.pictures] == [(width, height)] * 3
