"""Define the units of all families: size check, noise, input image or clip, initial latents, and inpaint mask.

Legend: latents are (B, c, h, w) float32 in the `latent_space` of the pipeline, for clips (B, c, t, h, w). The outputs
of a unit are cached under its class name and version: a family that encodes differently defines a subclass of the same
name with a new version.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from dsctl_core.errors import UsageError
from dsctl_core.media.clip import Clips, clips_of
from dsctl_core.memory.pinned import on_device
from dsctl_core.readable import counted
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.media.pipeline import LatentPipeline


class ShapeChecker(PipelineUnit):
    """Check that height, width and the number of frames are multiples that the VAE and the transformer support."""

    def process(self, pipe: LatentPipeline, height: int, width: int, num_frames: int = 1) -> Inputs:
        """Raise an error for an unsupported size; return no outputs."""
        pipe.check_size(height, width, num_frames)
        return {}


class NoiseInitializer(PipelineUnit):
    """Draw the noise, with one generator per sample, so that a sample does not depend on its batch.

    The noise of a sample without a seed is drawn from torch's global generator.
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
        reference_frames: int = 0,
    ) -> Inputs:
        """Return `noise` with the shape of latents: one sample per seed of a list, else one sample.

        Args:
            pipe: The pipeline.
            height: Height in pixels.
            width: Width in pixels.
            seed: A seed, or one per sample.
            rand_device: Device of the generator.
            noise: Noise to return instead of drawing it.
            num_frames: Number of frames of a clip.
            reference_frames: Number of latent frames in front of those of a clip, for reference images.
        """
        channels, *sides = pipe.latent_space.latent_shape(height, width, num_frames)
        # Without reference frames it is a latent space of images or of clips.
        shape = (channels, *sides) if not reference_frames else (channels, sides[0] + reference_frames, *sides[1:])
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
        return {"noise": on_device(torch.stack(draws), pipe.device)}


class InputImageEmbedder(PipelineUnit):
    """Encode the input image, which in training is the target; `input_latents`, if present, are returned instead."""

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
        """Return `input_latents`, or None without an input image; in a latent space of clips they have one frame.

        Args:
            pipe: The pipeline.
            height: Height of the image in pixels.
            width: Width of the image in pixels.
            input_image: An image, or one per sample.
            input_latents: Latents to return instead of encoding the image.
            tiled: Whether the VAE works in tiles.
            tile_size: Size of a tile in pixels (None: the default of the VAE).
            tile_stride: Distance of tiles in pixels (None: the default of the VAE).
        """
        if input_latents is not None or input_image is None:
            return {"input_latents": input_latents}
        images = input_image if isinstance(input_image, list) else [input_image]
        for image in images:
            check_picture("input image", image, height, width)
        return {"input_latents": pipe.encode_pictures(images, tiled, tile_size, tile_stride)}


class InputVideoEmbedder(PipelineUnit):
    """Encode the input clip, which in training is the target; `input_latents`, if present, are returned instead."""

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
        """Return `input_latents` (B, c, t, h, w), or None without an input clip.

        Args:
            pipe: The pipeline.
            height: Height of the frames in pixels.
            width: Width of the frames in pixels.
            num_frames: Number of frames of the clip.
            input_video: A clip, or one per sample.
            input_latents: Latents to return instead of encoding the clip.
            tiled: Whether the VAE works in tiles.
            tile_size: Size of a tile in pixels (None: the default of the VAE).
            tile_stride: Distance of tiles in pixels (None: the default of the VAE).
        """
        if input_latents is not None or input_video is None:
            return {"input_latents": input_latents}
        clips = clips_of(input_video)
        for clip in clips:
            if len(clip) != num_frames:
                raise UsageError(
                    f"the input video has {counted(len(clip), 'frame')}, but {num_frames} are asked for",
                    hint="cut it, or ask for its frames",
                )
            for frame in clip:
                check_picture("input video", frame, height, width)
        pixels = torch.cat([pipe.clip_pixels(clip) for clip in clips])
        return {"input_latents": pipe.encode_pixels(pixels, tiled, tile_size, tile_stride)}


class LatentsInitializer(PipelineUnit):
    """Compute the initial latents: the noise, or the input latents with noise added up to the first noise level."""

    output_params = ("latents",)

    def process(self, pipe: LatentPipeline, noise: Tensor, input_latents: Tensor | None = None) -> Inputs:
        """Return `latents`; in training they are the noise, and the loss adds noise to the input latents itself."""
        if input_latents is None or pipe.scheduler.training:
            return {"latents": noise}
        if len(input_latents) not in (1, len(noise)):
            raise UsageError(
                f"{len(input_latents)} input images for a batch of {len(noise)}",
                hint="give one, or one for each prompt",
            )
        first = 1000 * pipe.scheduler.sigmas[0]
        return {"latents": pipe.scheduler.add_noise(input_latents.expand_as(noise), noise, first)}


class InpaintMask(PipelineUnit):
    """Scale the inpaint mask to the size of the latents: white is generated, black is kept, grey is in between."""

    output_params = ("latents_mask",)

    def process(
        self,
        pipe: LatentPipeline,
        height: int,
        width: int,
        inpaint_mask: Image.Image | list[Image.Image] | None = None,
        input_latents: Tensor | None = None,
        num_frames: int = 1,
        reference_frames: int = 0,
    ) -> Inputs:
        """Return `latents_mask` (1, 1, h, w), or (1, 1, n + t, h, w) for clips; None without a mask.

        Its values, in [0, 1], are the means of the mask over the pixels of each latent, and 1 for reference frames.

        Args:
            pipe: The pipeline.
            height: Height of the mask in pixels.
            width: Width of the mask in pixels.
            inpaint_mask: A mask; for clips one mask for all frames, or a list with one per frame.
            input_latents: Latents of the input, which an inpaint mask needs.
            num_frames: Number of frames of the clip.
            reference_frames: Number n of latent frames in front of those of the clip, for reference images.
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
        return {"latents_mask": with_reference_frames(mask_of_latents(pipe, masks, num_frames), reference_frames)}


def mask_of_latents(pipe: LatentPipeline, masks: Sequence[Image.Image], num_frames: int = 1) -> Tensor:
    """Return a mask of latents, (1, 1, h, w) or for clips (1, 1, t, h, w): means over the pixels of each latent.

    `masks` are pictures of the size of the sample, black (0) to white (1): one for all frames, or one per frame.
    """
    pixels = torch.stack([torch.from_numpy(np.array(m.convert("L"), dtype=np.float32) / 255) for m in masks])
    small = avg_pool2d(pixels[:, None], pipe.latent_space.scale)  # (frames, 1, h, w)
    if pipe.latent_space.time_scale is not None:
        small = mask_in_time(small.expand(num_frames, -1, -1, -1), pipe.latent_space.time_scale)
    return small.to(pipe.device)


def with_reference_frames(mask: Tensor, count: int) -> Tensor:
    """Return a mask (B, 1, t, h, w) with `count` frames of ones in front; unchanged for 0, also for images."""
    return mask if not count else torch.cat([torch.ones_like(mask[:, :, :1].expand(-1, -1, count, -1, -1)), mask], 2)


def mask_in_time(masks: Tensor, time_scale: int) -> Tensor:
    """Return the masks of frames (T, 1, h, w) as a mask of latent frames (1, 1, t, h, w), the mean over its frames.

    The first latent frame is the first frame, and each of the others is `time_scale` frames.
    """
    first, others = masks[:1], masks[1:].unflatten(0, (-1, time_scale)) if len(masks) > 1 else None
    small = first if others is None else torch.cat([first, others.mean(dim=1)])
    return small.transpose(0, 1)[None]


def check_picture(what: str, picture: Image.Image, height: int, width: int) -> None:
    """Raise an error if `picture` is not `height` x `width` pixels; the caller decides how to resize it.

    `what` is the name of the input in the message.
    """
    if picture.size != (width, height):
        raise UsageError(
            f"the {what} is {picture.width}x{picture.height}, but the width and height asked for are {width}x{height}",
            hint="crop or resize it, or ask for its size",
        )
