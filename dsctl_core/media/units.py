"""The units of every family of pictures: size, noise, input image, where denoising starts, and the inpaint mask.

Legend: latents are (B, c, h, w) float32 in the pipeline's `latent_space`. What a unit returns is kept in caches under
its class's name and version: a family that comes to encode otherwise writes a subclass of that name with a new version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from dsctl_core.errors import UsageError
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.media.pipeline import PicturePipeline


class ShapeChecker(PipelineUnit):
    """Refuse a size that does not divide into the patches of VAE and transformer."""

    def process(self, pipe: PicturePipeline, height: int, width: int) -> Inputs:
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
        pipe: PicturePipeline,
        height: int,
        width: int,
        seed: int | list[int] | list[int | None] | None = None,
        rand_device: torch.device | str = "cpu",
        noise: Tensor | None = None,
    ) -> Inputs:
        """Return `noise`, (B, c, h, w): one for each seed of a list, else one."""
        space = pipe.latent_space
        shape = (space.channels, height // space.scale, width // space.scale)
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
        pipe: PicturePipeline,
        height: int,
        width: int,
        input_image: Image.Image | list[Image.Image] | None = None,
        input_latents: Tensor | None = None,
        tiled: bool = False,
        tile_size: int | None = None,
        tile_stride: int | None = None,
    ) -> Inputs:
        """Return `input_latents`, (B, c, h, w), or None when there is no input image."""
        if input_latents is not None or input_image is None:
            return {"input_latents": input_latents}
        images = input_image if isinstance(input_image, list) else [input_image]
        for image in images:
            check_picture("input image", image, height, width)
        return {"input_latents": pipe.encode_pictures(images, tiled, tile_size, tile_stride)}


class LatentsInitializer(PipelineUnit):
    """Choose where denoising starts: at the noise, or at the input image with noise up to the first level."""

    output_params = ("latents",)

    def process(self, pipe: PicturePipeline, noise: Tensor, input_latents: Tensor | None = None) -> Inputs:
        """Return `latents`, (B, c, h, w); in training they are the noise, and the loss blends its own."""
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
        pipe: PicturePipeline,
        height: int,
        width: int,
        inpaint_mask: Image.Image | None = None,
        input_latents: Tensor | None = None,
    ) -> Inputs:
        """Return `latents_mask`, (1, 1, h, w) in [0, 1], the white share of each latent's pixels, or None."""
        if inpaint_mask is None:
            return {"latents_mask": None}
        if input_latents is None:
            raise UsageError("an inpaint mask needs an input image", hint="give the picture to be repaired as well")
        check_picture("inpaint mask", inpaint_mask, height, width)
        pixels = torch.from_numpy(np.array(inpaint_mask.convert("L"), dtype=np.float32) / 255)
        return {"latents_mask": avg_pool2d(pixels[None, None], pipe.latent_space.scale).to(pipe.device)}


def check_picture(what: str, picture: Image.Image, height: int, width: int) -> None:
    """Refuse a picture that is not of the size asked for: how to fit it is the caller's choice."""
    if picture.size != (width, height):
        raise UsageError(
            f"the {what} is {picture.width}x{picture.height}, but the width and height asked for are {width}x{height}",
            hint="crop or resize it, or ask for its size",
        )
