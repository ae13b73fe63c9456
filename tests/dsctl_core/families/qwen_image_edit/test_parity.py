"""Qwen-Image-Edit beside diffusers' own two pipelines, in float32 on tiny random models: the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from dsctl_core.families.qwen_image.latents import decode
from dsctl_core.families.qwen_image_edit.family import fitted_size
from dsctl_core.families.qwen_image_edit.units import resized
from dsctl_core.pipeline import no_progress_bar
from tests.dsctl_core.families.qwen_image_edit.conftest import PIXELS, Pair, picture

PROMPT, OTHER = "make the fox blue", "remove the small yellow star in the top left corner"


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def takes_several(pair: Pair) -> bool:
    return type(pair.official).__name__ == "QwenImageEditPlusPipeline"


def references(pair: Pair, count: int = 2) -> list[Image.Image]:
    """As many as the model takes, of different shapes."""
    sizes = ((80, 48), (50, 100), (64, 64))
    return [picture(*size, seed) for seed, size in enumerate(sizes[: count if takes_several(pair) else 1])]


def embed(pair: Pair, prompt: Any, images: Any) -> tuple[Tensor, Tensor | None]:
    with torch.no_grad():
        outputs = pair.ours.units[-1].process(pair.ours, prompt, images)
    return outputs["prompt_embeds"], outputs["prompt_embeds_mask"]


def official_embeds(pair: Pair, prompt: Any, images: list[Image.Image]) -> Tensor:
    """What the pipeline does with the pictures before `encode_prompt`, then `encode_prompt`."""
    pixels = 384 * 384 if takes_several(pair) else PIXELS
    shown = [pair.official.image_processor.resize(image, *fitted_size(*image.size, pixels)[::-1]) for image in images]
    with torch.no_grad():
        return pair.official.encode_prompt(prompt, image=shown)[0]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("prompt", [PROMPT, ""])
def test_prompt_embeddings_with_reference_pictures(pair: Pair, prompt: str, count: int) -> None:
    images = references(pair, count)
    embeds, mask = embed(pair, prompt, images)
    close(embeds, official_embeds(pair, prompt, images))
    assert mask is None


def test_without_the_types_of_tokens_the_positions_of_pictures_would_be_those_of_text(pair: Pair) -> None:
    images = references(pair)
    inner = pair.ours.component("text_encoder").model
    seen: list[Any] = []
    hook = inner.language_model.register_forward_pre_hook(
        lambda _, __, named: seen.append(named["position_ids"]), with_kwargs=True
    )
    embed(pair, PROMPT, images)
    hook.remove()
    (positions,) = seen
    time, rows, columns = positions[-3:, 0]
    tokens = pair.ours.units[-1].tokens(pair.ours, images[0])
    assert tokens > 1
    assert not torch.equal(rows, columns)
    assert not torch.equal(time, rows)


def test_prompts_without_reference_pictures_are_read_as_text(pair: Pair) -> None:
    embeds, mask = embed(pair, [PROMPT, OTHER], None)
    assert mask is not None
    for number, prompt in enumerate((PROMPT, OTHER)):
        alone, _ = embed(pair, prompt, None)
        close(embeds[number][mask[number]], alone[0])
    assert embed(pair, PROMPT, references(pair))[0].shape[1] > embed(pair, PROMPT, None)[0].shape[1]


@pytest.mark.parametrize("zero_cond_t", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (48, 80)])
def test_transformer_output(plus: Pair, size: tuple[int, int], zero_cond_t: bool) -> None:
    height, width = size[0] // 8, size[1] // 8
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, height, width, generator=generator)
    edit = [torch.randn(2, 16, *sides, generator=generator) for sides in ((4, 6), (8, 2))]
    timestep = torch.tensor([713.25, 20.0])
    embeds, mask = embed(plus, [PROMPT, OTHER], None)
    pack = plus.official._pack_latents
    tokens = [pack(each, 2, 16, *each.shape[2:]) for each in (latents, *edit)]
    shapes = [(1, each.shape[2] // 2, each.shape[3] // 2) for each in (latents, *edit)]
    networks = (plus.ours.component("dit"), plus.official.transformer)
    for network in networks:
        network.zero_cond_t = zero_cond_t
        for block in network.transformer_blocks:
            block.zero_cond_t = zero_cond_t
    try:
        with torch.no_grad():
            expected = plus.official.transformer(
                hidden_states=torch.cat(tokens, dim=1),
                timestep=timestep / 1000,
                encoder_hidden_states=embeds,
                encoder_hidden_states_mask=mask,
                img_shapes=[shapes] * 2,
                return_dict=False,
            )[0][:, : tokens[0].shape[1]]
            actual = plus.ours.call_model_fn(
                latents=latents,
                timestep=timestep,
                prompt_embeds=embeds,
                prompt_embeds_mask=mask,
                edit_latents=torch.cat(tokens[1:], dim=1),
                edit_sizes=((4, 6), (8, 2)),
            )
    finally:
        for network in networks:
            network.zero_cond_t = False
            for block in network.transformer_blocks:
                block.zero_cond_t = False
    close(actual, plus.official._unpack_latents(expected, *size, 8)[:, :, 0])
    assert actual.std() > 0.1, "the random model predicts next to nothing, so this proves nothing"


def official_image(pair: Pair, images: list[Image.Image], cfg: float, size: tuple[int, int]) -> Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return pair.official(
        image=images if takes_several(pair) else images[0],
        prompt=PROMPT,
        negative_prompt="blue" if cfg > 1 else None,
        true_cfg_scale=cfg,
        height=size[0],
        width=size[1],
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
    ).images


def our_image(pair: Pair, images: Any, cfg: float, size: tuple[int, int]) -> Tensor:
    with torch.no_grad():
        latents = pair.ours.generate(
            prompt=PROMPT,
            negative_prompt="blue",
            num_inference_steps=2,
            denoising_strength=1.0,
            progress_bar_cmd=no_progress_bar,
            shared={"cfg_scale": cfg, "height": size[0], "width": size[1], "seed": 3, "edit_image": images},
        )
        return decode(pair.ours.vae, latents, tiled=False, tile_size=256, tile_stride=192) * 0.5 + 0.5


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("count", [1, 2])
def test_whole_images(pair: Pair, count: int, cfg: float, size: tuple[int, int]) -> None:
    images = references(pair, count)
    actual = our_image(pair, images, cfg, size)
    close(actual, official_image(pair, images, cfg, size))
    assert actual.std() > 0.05


def test_the_reference_pictures_and_their_order_matter(plus: Pair) -> None:
    first, second = references(plus)
    base = our_image(plus, [first, second], 1.0, (64, 64))
    assert (our_image(plus, [second, first], 1.0, (64, 64)) - base).abs().max() > 1e-3
    assert (our_image(plus, [first], 1.0, (64, 64)) - base).abs().max() > 1e-3
    assert (our_image(plus, None, 1.0, (64, 64)) - base).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(64, 64), (1328, 1328), (3000, 500), (500, 3001), (96, 100), (4000, 17)])
@pytest.mark.parametrize("pixels", [384 * 384, 1024 * 1024, PIXELS])
def test_reference_pictures_are_resized_as_in_diffusers(plus: Pair, size: tuple[int, int], pixels: int) -> None:
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions

    wanted = calculate_dimensions(pixels, size[0] / size[1])
    assert fitted_size(*size, pixels) == (max(wanted[0], 32), max(wanted[1], 32))
    image = picture(*size)
    theirs = plus.official.image_processor.resize(image, *fitted_size(*size, pixels)[::-1])
    assert resized(image, pixels).tobytes() == theirs.tobytes()


def test_the_size_of_the_edited_picture_is_that_of_diffusers(pair: Pair) -> None:
    for images in ([picture(100, 50)], [picture(100, 50), picture(40, 100)]):
        if len(images) > 1 and not takes_several(pair):
            continue
        ours = pair.ours(PROMPT, edit_image=images, cfg_scale=1.0, num_inference_steps=2, seed=0)
        wide, tall = fitted_size(*images[-1].size, PIXELS)
        assert ours.size == (wide, tall)
