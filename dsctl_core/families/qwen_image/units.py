"""Qwen-Image's units, in the order in which they run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.nn.utils.rnn import pad_sequence

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.qwen_image.latents import SCALE, TILE_SIZE, TILE_STRIDE, encode
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.families.qwen_image.pipeline import QwenImagePipeline
    from dsctl_core.pipeline import BasePipeline

logger = logging.getLogger(__name__)

CHANNELS = 16

# The prompt goes to the text encoder inside the chat that the model was trained with. The first PREFIX tokens, the
# system's words, are the same for every prompt and are dropped from its output (Qwen-Image report, arXiv:2508.02324).
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
PREFIX = 34
MAX_TOKENS = 1024
LIMIT = MAX_TOKENS + PREFIX


class ShapeChecker(PipelineUnit):
    """Refuse a size that does not divide into the VAE's and the transformer's patches."""

    def process(self, pipe: QwenImagePipeline, height: int, width: int) -> Inputs:
        """Check, and add nothing."""
        pipe.check_size(height, width)
        return {}


class NoiseInitializer(PipelineUnit):
    """Draw the noise, one generator for each sample, so that a sample does not depend on its batch.

    A sample without a seed draws from torch's global generator.
    """

    output_params = ("noise",)

    def process(
        self,
        pipe: QwenImagePipeline,
        height: int,
        width: int,
        seed: int | list[int] | list[int | None] | None = None,
        rand_device: torch.device | str = "cpu",
        noise: Tensor | None = None,
    ) -> Inputs:
        """Return `noise` as (B, 16, h, w) float32: one for each seed of a list, else one."""
        shape = (CHANNELS, height // SCALE, width // SCALE)
        if noise is not None:
            if tuple(noise.shape[1:]) != shape:
                raise UsageError(
                    f"the noise is {tuple(noise.shape)}",
                    hint=f"at {height}x{width} it is (B, {shape[0]}, *{shape[1:]})",
                )
            return {"noise": noise.to(pipe.device, torch.float32)}
        draws = []
        for each in seed if isinstance(seed, list) else [seed]:
            generator = None if each is None else torch.Generator(rand_device).manual_seed(each)
            draws.append(torch.randn(shape, generator=generator, device=rand_device, dtype=torch.float32))
        return {"noise": torch.stack(draws).to(pipe.device)}


class InputImageEmbedder(PipelineUnit):
    """Encode the input image, which in training is the picture to learn; latents that are given are kept."""

    output_params = ("input_latents",)
    onload_model_names = ("vae",)
    version = 2  # 1 convolved frames of zeros too, which rounds otherwise

    def process(
        self,
        pipe: QwenImagePipeline,
        height: int,
        width: int,
        input_image: Image.Image | list[Image.Image] | None = None,
        input_latents: Tensor | None = None,
        tiled: bool = False,
        tile_size: int = TILE_SIZE,
        tile_stride: int = TILE_STRIDE,
    ) -> Inputs:
        """Return `input_latents` as (B, 16, h, w) float32, or None when there is no input image."""
        if input_latents is not None or input_image is None:
            return {"input_latents": input_latents}
        pipe.load_models_to_device(self.onload_model_names)
        images = input_image if isinstance(input_image, list) else [input_image]
        for image in images:
            check_picture("input image", image, height, width)
        pixels = torch.cat([pipe.preprocess_image(image) for image in images]).to(pipe.device)
        return {"input_latents": encode(pipe.component("vae"), pixels, tiled, tile_size, tile_stride)}


class LatentsInitializer(PipelineUnit):
    """Choose where denoising starts: at the noise, or at the input image with noise up to the first level."""

    output_params = ("latents",)

    def process(self, pipe: QwenImagePipeline, noise: Tensor, input_latents: Tensor | None = None) -> Inputs:
        """Return `latents` as (B, 16, h, w); in training they are the noise, and the loss blends its own."""
        if input_latents is None or pipe.scheduler.training:
            return {"latents": noise}
        if len(input_latents) not in (1, len(noise)):
            raise UsageError(
                f"{len(input_latents)} input images for a batch of {len(noise)}",
                hint="give one, or one for each prompt",
            )
        first = pipe.scheduler.timesteps[0]
        return {"latents": pipe.scheduler.add_noise(input_latents.expand_as(noise), noise, first)}


class InpaintMask(PipelineUnit):
    """Bring the inpaint mask to the latents' size: white is painted anew, black is kept, grey is in between."""

    output_params = ("latents_mask",)

    def process(
        self,
        pipe: QwenImagePipeline,
        height: int,
        width: int,
        inpaint_mask: Image.Image | None = None,
        input_latents: Tensor | None = None,
    ) -> Inputs:
        """Return `latents_mask` as (1, 1, h, w) in [0, 1], the white share of each latent's 8x8 pixels, or None."""
        if inpaint_mask is None:
            return {"latents_mask": None}
        if input_latents is None:
            raise UsageError("an inpaint mask needs an input image", hint="give the picture to be repaired as well")
        check_picture("inpaint mask", inpaint_mask, height, width)
        pixels = torch.from_numpy(np.array(inpaint_mask.convert("L"), dtype=np.float32) / 255)
        return {"latents_mask": avg_pool2d(pixels[None, None], SCALE).to(pipe.device)}


class PromptEmbedder(PipelineUnit):
    """Turn the prompt into the text encoder's last hidden states."""

    output_params = ("prompt_embeds", "prompt_embeds_mask")
    onload_model_names = ("text_encoder",)
    separate_cfg = True
    padded = {"prompt_embeds": "prompt_embeds_mask"}

    def process(self, pipe: QwenImagePipeline, prompt: str | list[str]) -> Inputs:
        """Return `prompt_embeds` (B, T, D), and `prompt_embeds_mask` (B, T) bool or None when nothing is padded."""
        pipe.load_models_to_device(self.onload_model_names)
        texts = _chats(prompt)
        tokens = _tokenizer(pipe)(texts, padding=True, truncation=True, max_length=LIMIT, return_tensors="pt")
        _warn_of_cut_prompts(pipe, texts, tokens.attention_mask.sum(dim=1).tolist(), LIMIT)
        mask = tokens.attention_mask.to(pipe.device)
        # Without the language-model head: its (B, T, 152064) logits are not needed.
        encoder = pipe.component("text_encoder").model
        output = encoder(input_ids=tokens.input_ids.to(pipe.device), attention_mask=mask, use_cache=False)
        rows = [row[keep][PREFIX:] for row, keep in zip(output.last_hidden_state, mask.bool(), strict=True)]
        embeds, lengths = pad_sequence(rows, batch_first=True), [len(row) for row in rows]
        if min(lengths) == max(lengths):
            return {"prompt_embeds": embeds, "prompt_embeds_mask": None}
        valid = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        return {"prompt_embeds": embeds, "prompt_embeds_mask": valid.to(pipe.device)}

    def alike(self, pipe: BasePipeline, shared: Inputs, posi: Inputs, nega: Inputs) -> list[list[int]]:
        """Return the numbers of tokens: attention over padding takes another way, which rounds otherwise."""
        prompts = [each for each in (posi.get("prompt"), nega.get("negative_prompt")) if each is not None]
        read = [_tokenizer(pipe)(_chats(each), truncation=True, max_length=LIMIT).input_ids for each in prompts]
        return [[len(ids) for ids in each] for each in read]


def _chats(prompt: str | list[str]) -> list[str]:
    return [TEMPLATE.format(each) for each in ([prompt] if isinstance(prompt, str) else prompt)]


def _tokenizer(pipe: BasePipeline) -> Any:
    if pipe.tokenizer is None:
        raise DsctlError(
            "there is no tokenizer to read the prompt with",
            hint="name its folder too: --tokenizer-path, or tokenizer_config in Python",
        )
    return pipe.tokenizer


def check_picture(what: str, picture: Image.Image, height: int, width: int) -> None:
    """Refuse a picture that is not of the size asked for: how to fit it is the caller's choice."""
    if picture.size != (width, height):
        raise UsageError(
            f"the {what} is {picture.width}x{picture.height}, but the width and height asked for are {width}x{height}",
            hint="crop or resize it, or ask for its size",
        )


def _warn_of_cut_prompts(pipe: QwenImagePipeline, texts: list[str], lengths: list[int], limit: int) -> None:
    for text, length in zip(texts, lengths, strict=True):
        if length >= limit:
            actual = len(pipe.tokenizer(text).input_ids)
            if actual > limit:
                logger.warning(
                    "a prompt of %d tokens is cut to %d, the most that the model takes", actual - PREFIX, MAX_TOKENS
                )
