"""Define FLUX.1's units: prompts of two text encoders, sizes of reference images, and the masked image of Fill."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from dsctl_core.errors import UsageError
from dsctl_core.families.flux1.family import CLIP_TOKENS, FACTOR, text_tokens
from dsctl_core.media.units import check_picture
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.families.flux1.pipeline import Flux1Pipeline

logger = logging.getLogger(__name__)


class PromptEmbedder(PipelineUnit):
    """Encode the prompt twice: to the last hidden states of T5, and to the pooled output of CLIP."""

    output_params = ("prompt_embeds", "prompt_embeds_mask", "pooled_embeds")
    onload_model_names = ("text_encoder", "text_encoder_2")
    separate_cfg = True
    # All prompts have one length, but tokens that are appended to them, such as those of a template, can differ.
    padded = {"prompt_embeds": "prompt_embeds_mask"}

    def process(self, pipe: Flux1Pipeline, prompt: str | list[str]) -> Inputs:
        """Return `prompt_embeds` (B, 512 or 256, D), including padding, and `pooled_embeds` (B, D').

        `prompt_embeds_mask` is None: the transformer was trained to attend to the padding too.
        """
        pipe.load_models_to_device(self.onload_model_names)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        limit = text_tokens(pipe.parts)
        for ids in pipe.reader("tokenizer_2")(prompts).input_ids:
            if len(ids) > limit:
                logger.warning("a prompt is cut: it is %d tokens, and the model takes %d", len(ids), limit)
        clip, t5 = pipe.component("text_encoder"), pipe.component("text_encoder_2")
        embeds = t5(self._tokens(pipe, "tokenizer_2", prompts, limit)).last_hidden_state
        pooled = clip(self._tokens(pipe, "tokenizer", prompts, CLIP_TOKENS)).pooler_output
        return {"prompt_embeds": embeds, "prompt_embeds_mask": None, "pooled_embeds": pooled}

    @staticmethod
    def _tokens(pipe: Flux1Pipeline, reader: str, prompts: list[str], length: int) -> Tensor:
        """Return the token ids (B, length) of prompts, padded or truncated."""
        read = pipe.reader(reader)(
            prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return read.input_ids.to(pipe.device)


def fitted(picture: Image.Image, sizes: Sequence[Sequence[int]]) -> Image.Image:
    """Return a reference image, resized to the one of `sizes` (width, height) with the most similar aspect ratio.

    As in diffusers, the ratio is that of the sides rounded down to multiples of 16.
    """
    across, down = picture.width // FACTOR, picture.height // FACTOR
    if not across or not down:
        raise UsageError(
            f"a reference picture is {picture.width}x{picture.height}, but each side needs {FACTOR} pixels at least",
            hint="give a larger picture",
        )
    _, width, height = min((abs(across / down - wide / tall), wide, tall) for wide, tall in sizes)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def refused(picture: Image.Image) -> Image.Image:
    """Raise UsageError: the model takes no reference images."""
    raise UsageError(
        "these weights take no reference pictures",
        hint="leave --edit-image out, or use flux1-kontext-dev; to start from a picture give --input-image",
    )


class FillEmbedder(PipelineUnit):
    """Encode what Fill reads in addition to the noisy latents: the image with its masked part in grey, and the mask."""

    output_params = ("fill_latents",)
    onload_model_names = ("vae",)

    def process(
        self,
        pipe: Flux1Pipeline,
        height: int,
        width: int,
        input_image: Image.Image | list[Image.Image] | None = None,
        inpaint_mask: Image.Image | list[Image.Image] | None = None,
        tiled: bool = False,
        tile_size: int | None = None,
        tile_stride: int | None = None,
    ) -> Inputs:
        """Return `fill_latents` (B, 16 + 64, h, w) float32: latents of the masked image, and the mask.

        The 64 channels of the mask are its 8 x 8 pixels for each latent, 1 where the image is generated. `inpaint_mask`
        is one mask for all images, or one per image. Raises UsageError without an image and a mask.

        Args:
            pipe: The pipeline.
            height: Height of the image in pixels.
            width: Width of the image in pixels.
            input_image: An image, or one per sample.
            inpaint_mask: A mask, or one per sample.
            tiled: Whether the VAE works in tiles.
            tile_size: Size of a tile in pixels (None: the default of the VAE).
            tile_stride: Distance of tiles in pixels (None: the default of the VAE).
        """
        if input_image is None or inpaint_mask is None:
            raise UsageError(
                "Fill needs an input image and an inpaint mask",
                hint="give --input-image and --inpaint-mask; in training, the column inpaint_mask in --extra-inputs",
            )
        images = input_image if isinstance(input_image, list) else [input_image]
        masks = inpaint_mask if isinstance(inpaint_mask, list) else [inpaint_mask]
        if len(images) > 1 and len(masks) not in (1, len(images)):
            raise UsageError(f"{len(masks)} inpaint masks for {len(images)} images", hint="give one, or one for each")
        for what, given in (("input image", images), ("inpaint mask", masks)):
            for picture in given:
                check_picture(what, picture, height, width)
        grey = torch.stack([torch.from_numpy(np.array(m.convert("L"), dtype=np.float32)) for m in masks])
        mask = (grey[:, None] / 255 >= 0.5).float()  # (B or 1, 1, H, W)
        pixels = torch.cat([pipe.preprocess_image(image) for image in images]) * (1 - mask)
        latents = pipe.encode_pixels(pixels, tiled, tile_size, tile_stride)
        # The order of the 64 channels is (row, column) inside the 8 x 8 pixels of a latent.
        channels = pixel_unshuffle(mask, pipe.latent_space.scale).to(latents)
        return {"fill_latents": torch.cat([latents, channels.expand(len(latents), -1, -1, -1)], dim=1)}
