"""Define Wan VACE's units: they check and encode what a clip is to follow, and put references before the target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsctl_core.families.wan_vace.context import (
    SHOWN,
    Followed,
    Given,
    check_followed,
    followed,
    mask_frames,
    mask_levels,
    on_white,
)
from dsctl_core.media import units as shared_units
from dsctl_core.media.clip import Clips
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.families.wan_vace.pipeline import WanVacePipeline

LATENTS = 16  # channels of the latents of a clip


class FollowedChecker(PipelineUnit):
    """Check that the control video, its mask and the reference images fit the clip and each other."""

    def process(
        self,
        pipe: WanVacePipeline,
        height: int,
        width: int,
        num_frames: int,
        vace_video: Given = None,
        vace_video_mask: Given = None,
        vace_reference_image: Given = None,
    ) -> Inputs:
        """Raise an error for what does not fit; return no outputs."""
        check_followed(followed(vace_video, vace_video_mask, vace_reference_image), height, width, num_frames)
        return {}


class VaceEmbedder(PipelineUnit):
    """Encode what the clip is to follow: control video, mask and reference images."""

    output_params = ("vace_latents", "vace_mask", "reference_frames")
    onload_model_names = ("vae",)

    def process(
        self,
        pipe: WanVacePipeline,
        height: int,
        width: int,
        num_frames: int,
        vace_video: Given = None,
        vace_video_mask: Given = None,
        vace_reference_image: Given = None,
        tiled: bool = False,
        tile_size: int | None = None,
        tile_stride: int | None = None,
    ) -> Inputs:
        """Return the context, whose first frames are the reference images in their order.

        These are `vace_latents` (B or 1, 32, n + t, h, w), of a frame of a reference image its latents and zeros, of
        the others the latents of the control video where the mask is black, and of it where the mask is white;
        `vace_mask` (B or 1, 64, n + t, h, w) uint8, the pixels of the mask for each latent, 255 being white and 0 in
        front of the clip; and `reference_frames`, n. Pixels that are not shown, and a control video that is not
        there, are mid-grey; without a mask all of the video is where the mask is white.

        Args:
            pipe: The pipeline.
            height: Height of the frames in pixels.
            width: Width of the frames in pixels.
            num_frames: Number of frames of the clip.
            vace_video: The control video, or one per sample, None for a sample without.
            vace_video_mask: The mask of the control video, or one per sample; a single picture is that of all frames.
            vace_reference_image: The reference images of all samples, or a list of them per sample.
            tiled: Whether the VAE works in tiles.
            tile_size: Size of a tile in pixels (None: the default of the VAE).
            tile_stride: Distance of tiles in pixels (None: the default of the VAE).
        """
        samples = followed(vace_video, vace_video_mask, vace_reference_image)
        check_followed(samples, height, width, num_frames)
        tiles = (tiled, tile_size, tile_stride)
        grey: list[Tensor] = []  # the latents of a clip of nothing, encoded once

        def encoded(clip: Tensor | None) -> Tensor:
            if clip is not None:
                return pipe.encode_pixels(clip, *tiles)
            if not grey:
                grey.append(pipe.encode_pixels(torch.zeros(1, 3, num_frames, height, width), *tiles))
            return grey[0]

        latents, masks = [], []
        space = pipe.latent_space
        for sample in samples:
            mask = mask_frames(sample.mask, num_frames, height, width)
            inactive, reactive = _halves(pipe, sample, mask)
            latents.append(torch.cat([encoded(inactive), encoded(reactive)], dim=1))
            masks.append(mask_levels(mask, space.latent_frames(num_frames), space.scale))
        context, levels = torch.cat(latents), torch.stack(masks).to(pipe.device)
        count = len(samples[0].references)
        if count:
            front = torch.stack([_references(pipe, sample, height, width, tiles) for sample in samples])
            context = torch.cat([torch.cat([front, torch.zeros_like(front)], dim=1), context], dim=2)
            levels = torch.cat([torch.zeros_like(levels[:, :, :1]).expand(-1, -1, count, -1, -1), levels], dim=2)
        return {"vace_latents": context, "vace_mask": levels, "reference_frames": count}


class InputVideoEmbedder(shared_units.InputVideoEmbedder):
    """Encode the input clip, with the reference images of the context as its first frames."""

    def process(  # type: ignore[override]
        self,
        pipe: WanVacePipeline,
        height: int,
        width: int,
        num_frames: int,
        vace_latents: Tensor,
        input_video: Clips | None = None,
        input_latents: Tensor | None = None,
        reference_frames: int = 0,
        tiled: bool = False,
        tile_size: int | None = None,
        tile_stride: int | None = None,
    ) -> Inputs:
        """Return `input_latents` (B, 16, n + t, h, w), or None without an input clip.

        `input_latents` that are given have the reference frames already. See `VaceEmbedder` for `vace_latents`, of
        which the first `reference_frames` frames are used.
        """
        given: dict[str, Any] = {"input_video": input_video, "input_latents": input_latents}
        made = super().process(
            pipe, height, width, num_frames, **given, tiled=tiled, tile_size=tile_size, tile_stride=tile_stride
        )["input_latents"]
        if made is None or input_latents is not None or not reference_frames:
            return {"input_latents": made}
        front = vace_latents[:, :LATENTS, :reference_frames].to(made).expand(len(made), -1, -1, -1, -1)
        return {"input_latents": torch.cat([front, made], dim=2)}


def _halves(pipe: WanVacePipeline, sample: Followed, mask: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the control video where `mask` (T, H, W) is black, and where it is white: clips (1, 3, T, H, W).

    The other pixels are 0, mid-grey; None stands for a clip that is 0 everywhere.
    """
    if sample.video is None:
        return None, None
    clip = pipe.clip_pixels(sample.video)
    if sample.mask is None:
        return None, clip
    shown = (mask > SHOWN).to(clip)
    return clip * (1 - shown), clip * shown


def _references(pipe: WanVacePipeline, sample: Followed, height: int, width: int, tiles: tuple[Any, ...]) -> Tensor:
    """Return the latents of the reference images of a sample, (16, n, h, w), each encoded as a clip of one frame."""
    made = [pipe.encode_pixels(on_white(each, height, width).unsqueeze(2), *tiles) for each in sample.references]
    return torch.cat(made, dim=2)[0]
