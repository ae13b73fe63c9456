"""FLUX.2's units, in the order in which they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.flux2.latents import CHANNELS, SCALE, TILE_SIZE, TILE_STRIDE, encode, pack
from dsctl_core.families.flux2.text import embed, tokenize
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.families.flux2.pipeline import Flux2Pipeline

MOST_PIXELS = 1024 * 1024  # of a reference picture; a larger one is made smaller

Pictures = Image.Image | list[Image.Image] | list[list[Image.Image]]


class ShapeChecker(PipelineUnit):
    """Refuse a size that does not divide into the VAE's patches."""

    def process(self, pipe: Flux2Pipeline, height: int, width: int) -> Inputs:
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
        pipe: Flux2Pipeline,
        height: int,
        width: int,
        seed: int | list[int] | list[int | None] | None = None,
        rand_device: torch.device | str = "cpu",
        noise: Tensor | None = None,
    ) -> Inputs:
        """Return `noise` as (B, 128, h, w) float32: one for each seed of a list, else one."""
        shape = (CHANNELS, height // SCALE, width // SCALE)
        if noise is not None:
            if tuple(noise.shape[1:]) != shape:
                raise UsageError(
                    f"the noise is {tuple(noise.shape)}",
                    hint=f"at {height}x{width} it is (B, {shape[0]}, {shape[1]}, {shape[2]})",
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

    def process(
        self,
        pipe: Flux2Pipeline,
        height: int,
        width: int,
        input_image: Image.Image | list[Image.Image] | None = None,
        input_latents: Tensor | None = None,
        tiled: bool = False,
        tile_size: int = TILE_SIZE,
        tile_stride: int = TILE_STRIDE,
    ) -> Inputs:
        """Return `input_latents` as (B, 128, h, w) float32, or None when there is no input image."""
        if input_latents is not None or input_image is None:
            return {"input_latents": input_latents}
        pipe.load_models_to_device(self.onload_model_names)
        images = input_image if isinstance(input_image, list) else [input_image]
        for image in images:
            check_picture("input image", image, height, width)
        pixels = torch.cat([pipe.preprocess_image(image) for image in images]).to(pipe.device)
        return {"input_latents": encode(pipe.component("vae"), pixels, tiled, tile_size, tile_stride)}


class EditImageEmbedder(PipelineUnit):
    """Encode the reference pictures that are edited or combined, which go to the transformer beside the one made."""

    output_params = ("edit_latents", "edit_sizes")
    onload_model_names = ("vae",)

    def process(
        self,
        pipe: Flux2Pipeline,
        edit_image: Pictures | None = None,
        tiled: bool = False,
        tile_size: int = TILE_SIZE,
        tile_stride: int = TILE_STRIDE,
    ) -> Inputs:
        """Return the tokens `edit_latents` (B, N, 128) float32 and `edit_sizes` ((h, w), ...), or None for both.

        One picture, or a list of them, serves every sample (B is 1); a list of lists has each sample's own, and the
        first picture of every sample must be of one size, and so on.
        """
        if edit_image is None:
            return {"edit_latents": None, "edit_sizes": None}
        pipe.load_models_to_device(self.onload_model_names)
        samples = [[fitted(picture) for picture in own] for own in _by_sample(edit_image)]
        for own in samples[1:]:
            if [picture.size for picture in own] != [picture.size for picture in samples[0]]:
                raise DsctlError(
                    "one batch has reference pictures of different numbers or sizes",
                    hint="give a fixed --height and --width, or a batch size of 1",
                )
        tokens, sizes = [], []
        for pictures in zip(*samples, strict=True):  # the first of every sample, the second of every sample, ...
            pixels = torch.cat([pipe.preprocess_image(picture) for picture in pictures]).to(pipe.device)
            latents = encode(pipe.component("vae"), pixels, tiled, tile_size, tile_stride)
            tokens.append(pack(latents))
            sizes.append((latents.shape[2], latents.shape[3]))
        return {"edit_latents": torch.cat(tokens, dim=1), "edit_sizes": tuple(sizes)}


class LatentsInitializer(PipelineUnit):
    """Choose where denoising starts: at the noise, or at the input image with noise up to the first level."""

    output_params = ("latents",)

    def process(self, pipe: Flux2Pipeline, noise: Tensor, input_latents: Tensor | None = None) -> Inputs:
        """Return `latents` as (B, 128, h, w); in training they are the noise, and the loss blends its own."""
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
        pipe: Flux2Pipeline,
        height: int,
        width: int,
        inpaint_mask: Image.Image | None = None,
        input_latents: Tensor | None = None,
    ) -> Inputs:
        """Return `latents_mask` as (1, 1, h, w) in [0, 1], the white share of each latent's 16x16 pixels, or None."""
        if inpaint_mask is None:
            return {"latents_mask": None}
        if input_latents is None:
            raise UsageError("an inpaint mask needs an input image", hint="give the picture to be repaired as well")
        check_picture("inpaint mask", inpaint_mask, height, width)
        pixels = torch.from_numpy(np.array(inpaint_mask.convert("L"), dtype=np.float32) / 255)
        return {"latents_mask": avg_pool2d(pixels[None, None], SCALE).to(pipe.device)}


class PromptEmbedder(PipelineUnit):
    """Turn the prompt into hidden states of three of the text encoder's layers."""

    output_params = ("prompt_embeds", "prompt_embeds_mask")
    onload_model_names = ("text_encoder",)
    separate_cfg = True
    # All prompts have one length; what is put behind them, as a template's own tokens, can have several.
    padded = {"prompt_embeds": "prompt_embeds_mask"}

    def process(self, pipe: Flux2Pipeline, prompt: str | list[str]) -> Inputs:
        """Return `prompt_embeds` (B, 512, 3 D), the padding among them, so that `prompt_embeds_mask` is None."""
        pipe.load_models_to_device(self.onload_model_names)
        encoder = pipe.component("text_encoder")
        ids, mask = tokenize(pipe.tokenizer, encoder, [prompt] if isinstance(prompt, str) else prompt)
        embeds = embed(encoder, ids.to(pipe.device), mask.to(pipe.device))
        return {"prompt_embeds": embeds, "prompt_embeds_mask": None}


def fitted(picture: Image.Image) -> Image.Image:
    """Return a reference picture as the model takes it: at most a megapixel, sides cut evenly to multiples of 16."""
    width, height = picture.size
    if width * height > MOST_PIXELS:
        scale = (MOST_PIXELS / (width * height)) ** 0.5
        picture = picture.resize((int(width * scale), int(height * scale)), Image.Resampling.LANCZOS)
        width, height = picture.size
    if min(width, height) < SCALE:
        raise UsageError(
            f"a reference picture is {width}x{height}, but each side needs {SCALE} pixels at least",
            hint="give a larger picture",
        )
    left, top = (width - width // SCALE * SCALE) // 2, (height - height // SCALE * SCALE) // 2
    return picture.crop((left, top, left + width // SCALE * SCALE, top + height // SCALE * SCALE))


def _by_sample(pictures: Pictures) -> Sequence[Sequence[Image.Image]]:
    """Return the reference pictures of each sample; one list alone where all have the same."""
    listed = pictures if isinstance(pictures, list) else [pictures]
    if not listed:
        raise UsageError("the list of reference pictures is empty", hint="leave it out, or give one at least")
    if isinstance(listed[0], list):
        return [each if isinstance(each, list) else [each] for each in listed]
    return [[each for each in listed if isinstance(each, Image.Image)]]


def check_picture(what: str, picture: Image.Image, height: int, width: int) -> None:
    """Refuse a picture that is not of the size asked for: how to fit it is the caller's choice."""
    if picture.size != (width, height):
        raise UsageError(
            f"the {what} is {picture.width}x{picture.height}, but the width and height asked for are {width}x{height}",
            hint="crop or resize it, or ask for its size",
        )
