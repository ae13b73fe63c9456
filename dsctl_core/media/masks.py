"""Define the unit that turns masks of the dataset into the mask of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from dsctl_core.data.masks import BLACK_MASK
from dsctl_core.errors import DsctlError
from dsctl_core.media.clip import frames_of
from dsctl_core.media.units import mask_of_latents, with_reference_frames
from dsctl_core.readable import counted
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.media.pipeline import LatentPipeline


class LossMask(PipelineUnit):
    """Scale the masks of samples to the size of their latents: white counts in the loss, black does not, grey partly.

    It is a unit of training alone, and the last of those that a pipeline has. Where a unit before it has written a
    `loss_mask`, both apply.
    """

    output_params = ("loss_mask",)

    def process(
        self,
        pipe: LatentPipeline,
        height: int,
        width: int,
        num_frames: int = 1,
        mask: Sequence[Any] | None = None,
        loss_mask: Tensor | None = None,
        reference_frames: int = 0,
    ) -> Inputs:
        """Return `loss_mask` (B, 1, h, w), or (B, 1, n + t, h, w) for clips, in [0, 1]; without `mask` as it came in.

        Raises DsctlError for a mask of another size than the sample, and for one that leaves nothing that counts.

        Args:
            pipe: The pipeline.
            height: Height of the samples in pixels.
            width: Width of the samples in pixels.
            num_frames: Number of frames of the clips.
            mask: A mask per sample: a picture, a clip of `num_frames` frames, or None, by which all of it counts.
            loss_mask: The mask of units before this one, which expands to the latents.
            reference_frames: Number n of latent frames in front of those of the clips, for reference images; all of
                them counts.
        """
        if mask is None:
            return {"loss_mask": loss_mask}
        found = torch.cat([_of_sample(pipe, each, height, width, num_frames) for each in mask])
        found = with_reference_frames(found, reference_frames)
        if loss_mask is not None:
            found = found * loss_mask.to(found)
        if not bool((found.flatten(1).sum(dim=1) > 0).all()):
            raise DsctlError("the mask is black wherever it counts", hint=BLACK_MASK)
        return {"loss_mask": found}


def _of_sample(pipe: LatentPipeline, mask: Any, height: int, width: int, num_frames: int) -> Tensor:
    if mask is None:
        return torch.ones(1, 1, *pipe.latent_space.latent_shape(height, width, num_frames)[1:], device=pipe.device)
    frames: list[Image.Image] = frames_of(mask)
    for frame in frames:
        if frame.size != (width, height):
            raise DsctlError(
                f"the mask is {frame.width}x{frame.height} pixels, and its sample {width}x{height}",
                hint="give a mask of the size of its picture, or a fixed --height and --width",
            )
    if len(frames) not in (1, num_frames):
        raise DsctlError(
            f"the mask has {counted(len(frames), 'frame')}, and its sample {num_frames}",
            hint="give one picture for all frames, or a clip of the same length",
        )
    return mask_of_latents(pipe, frames, num_frames)
