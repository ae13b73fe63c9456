"""The units of every family: size, noise, input picture or clip, where denoising starts, and the inpaint mask.

Legend: latents are (B, c, h, w) float32 in the pipeline's `latent_space`, those of clips (B, c, t, h, w). What a unit
returns is kept in caches under its class's name and version: a family that comes to encode otherwise writes a subclass
of that name with a new version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from dsctl_core.errors import UsageError
from dsctl_core.media.clip import Clips, clips_of
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.media.pipeline import LatentPipeline


class ShapeChecker(PipelineUnit):
    """Refuse a size that does not divide into the patches of VAE and transformer, and frames that do not either."""

    def process(self, pipe: LatentPipeline, height: int, width: int, num_frames: int = 1) -> Inputs:
        """Check, and add nothing."""
        pipe.check_size(height, width, num_frames)
        return {}


class NoiseInitializer(PipelineUnit):
    """Draw the noise, one generator for each sample, so that a sample does not depend on its batch.

    A sample without a seed draws from torch's global generator.
    """

    output_params = ("noise",)

    def process(
        self,
        pipe: LatentPipeline,
        height: int,
        width: int,
        seed: int | list[int] | list[int | None] | None = None,
        rand_device: torch.device | str = "cpu",
        noise: Tensor | None = None,
        num_frames: int = 1,
    ) -> Inputs:
        """Return `noise`, of the shape of latents: one for each seed of a list, else one."""
        shape = pipe.latent_space.latent_shape(height, width, num_frames)
        if noise is not None:
            if tuple(noise.shape[1:]) != shape:
                raise UsageError(
                    f"the noise is {tuple(noise.shape)}",
                    hint=f"at {height}x{width} it is (B, {', '.join(map(str, shape))})",
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
        pipe: LatentPipeline,
        height: int,
        width: int,
        input_image: Image.Image | list[Image.Image] | None = None,
        input_latents: Tensor | None = None,
        tiled: bool = False,
        tile_size: int | None = None,
        tile_stride: int | None = None,
    ) -> Inputs:
        """Return `input_latents`, in a space of clips those of one frame, or None when there is no input image."""
        if input_latents is not None or input_image is None:
            return {"input_latents": input_latents}
        images = input_image if isinstance(input_image, list) else [input_image]
        for image in images:
            check_picture("input image", image, height, width)
        return {"input_latents": pipe.encode_pictures(images, tiled, tile_size, tile_stride)}


class InputVideoEmbedder(PipelineUnit):
    """Encode the input clip, which in training is the clip to learn; latents that are given are kept."""

    output_params = ("input_latents",)
    onload_model_names = ("vae",)

    def process(
        self,
        pipe: LatentPipeline,
        height: int,
        width: int,
        num_frames: int,
        input_video: Clips | None = None,
        input_latents: Tensor | None = None,
        tiled: bool = False,
        tile_size: int | None = None,
        tile_stride: int | None = None,
    ) -> Inputs:
        """Return `input_latents`, (B, c, t, h, w), or None when there is no input clip."""
        if input_latents is not None or input_video is None:
            return {"input_latents": input_latents}
        clips = clips_of(input_video)
        for clip in clips:
            if len(clip) != num_frames:
                raise UsageError(
                    f"the input video has {len(clip)} frames, but {num_frames} are asked for",
                    hint="cut it, or ask for its frames",
                )
            for frame in clip:
                check_picture("input video", frame, height, width)
        pixels = torch.cat([pipe.clip_pixels(clip) for clip in clips])
        return {"input_latents": pipe.encode_pixels(pixels, tiled, tile_size, tile_stride)}


class LatentsInitializer(PipelineUnit):
    """Choose where denoising starts: at the noise, or at the input image with noise up to the first level."""

    output_params = ("latents",)

    def process(self, pipe: LatentPipeline, noise: Tensor, input_latents: Tensor | None = None) -> Inputs:
        """Return `latents`; in training they are the noise, and the loss blends its own."""
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
        pipe: LatentPipeline,
        height: int,
        width: int,
        inpaint_mask: Image.Image | list[Image.Image] | None = None,
        input_latents: Tensor | None = None,
        num_frames: int = 1,
    ) -> Inputs:
        """Return `latents_mask`, the white share of each latent's pixels in [0, 1], or None.

        It is (1, 1, h, w), in a space of clips (1, 1, t, h, w). There one mask is for all frames, or a list has one for
        each of them.
        """
        if inpaint_mask is None:
            return {"latents_mask": None}
        if input_latents is None:
            raise UsageError("an inpaint mask needs an input image", hint="give the picture to be repaired as well")
        masks = inpaint_mask if isinstance(inpaint_mask, list) else [inpaint_mask]
        for mask in masks:
            check_picture("inpaint mask", mask, height, width)
        if len(masks) not in (1, num_frames):
            raise UsageError(f"{len(masks)} inpaint masks for {num_frames} frames", hint="give one, or one for each")
        pixels = torch.stack([torch.from_numpy(np.array(m.convert("L"), dtype=np.float32) / 255) for m in masks])
        small = avg_pool2d(pixels[:, None], pipe.latent_space.scale)  # (frames, 1, h, w)
        if pipe.latent_space.time_scale is not None:
            small = mask_in_time(small.expand(num_frames, -1, -1, -1), pipe.latent_space.time_scale)
        return {"latents_mask": small.to(pipe.device)}


def mask_in_time(masks: Tensor, time_scale: int) -> Tensor:
    """Return masks of frames (T, 1, h, w) as one of latent frames, (1, 1, t, h, w): the means of the frames of each.

    The first latent frame is the first frame, and every one after it is `time_scale` frames.
    """
    first, others = masks[:1], masks[1:].unflatten(0, (-1, time_scale)) if len(masks) > 1 else None
    small = first if others is None else torch.cat([first, others.mean(dim=1)])
    return small.transpose(0, 1)[None]


def check_picture(what: str, picture: Image.Image, height: int, width: int) -> None:
    """Refuse a picture that is not of the size asked for: how to fit it is the caller's choice."""
    if picture.size != (width, height):
        raise UsageError(
            f"the {what} is {picture.width}x{picture.height}, but the width and height asked for are {width}x{height}",
            hint="crop or resize it, or ask for its size",
        )
