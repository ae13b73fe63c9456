"""Encode reference images, which are edited or combined: the denoiser reads their tokens in addition to its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.media.pipeline import LatentPipeline

Pictures = Image.Image | list[Image.Image] | list[list[Image.Image]]


class EditImageEmbedder(PipelineUnit):
    """Encode the reference images.

    `fitted` resizes an image to a size that the family supports, and `packed` turns latents into tokens (B, N, D).
    """

    output_params = ("edit_latents", "edit_sizes")
    onload_model_names = ("vae",)

    def __init__(self, fitted: Callable[[Image.Image], Image.Image], packed: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fitted, self.packed = fitted, packed

    def process(
        self,
        pipe: LatentPipeline,
        edit_image: Pictures | None = None,
        tiled: bool = False,
        tile_size: int | None = None,
        tile_stride: int | None = None,
    ) -> Inputs:
        """Return the tokens `edit_latents` (B, N, D) float32 and `edit_sizes` ((h, w), ...), or None for both.

        `edit_image` is one image or a list of images for all samples (B is 1), or a list of images per sample. The
        first images of all samples must have one size, and so must the second ones, and so on.

        Args:
            pipe: The pipeline.
            edit_image: The reference images; None for none.
            tiled: Whether the VAE works in tiles.
            tile_size: Size of a tile in pixels (None: the default of the VAE).
            tile_stride: Distance of tiles in pixels (None: the default of the VAE).
        """
        if edit_image is None:
            return {"edit_latents": None, "edit_sizes": None}
        samples = [[self.fitted(picture) for picture in own] for own in by_sample(edit_image)]
        for own in samples[1:]:
            if [picture.size for picture in own] != [picture.size for picture in samples[0]]:
                raise DsctlError(
                    "one batch has reference pictures of different numbers or sizes",
                    hint="give a fixed --height and --width, or a batch size of 1",
                )
        tokens, sizes = [], []
        for pictures in zip(*samples, strict=True):  # the first of every sample, the second of every sample, ...
            latents = pipe.encode_pictures(pictures, tiled, tile_size, tile_stride)
            tokens.append(self.packed(latents))
            sizes.append((latents.shape[-2], latents.shape[-1]))
        return {"edit_latents": torch.cat(tokens, dim=1), "edit_sizes": tuple(sizes)}


def references_of(rows: Sequence[Inputs]) -> Inputs:
    """Return the input `edit_image` for dataset rows: a list of reference images per row, or None if no row has any.

    Raises DsctlError for rows with and without reference images.
    """
    found = [row.get("edit_image") for row in rows]
    listed = [each if isinstance(each, list) else [] if each is None else [each] for each in found]
    if not any(listed):
        return {"edit_image": None}
    for row, images in zip(rows, listed, strict=True):
        if not images:
            raise DsctlError(
                f"row {row.get('_row', '?')} has no reference picture, but other rows of its batch have",
                hint="give a batch size of 1",
            )
    return {"edit_image": listed}


def by_sample(pictures: Pictures) -> Sequence[Sequence[Image.Image]]:
    """Return a list of reference images per sample, or a single list if all samples have the same images."""
    listed = pictures if isinstance(pictures, list) else [pictures]
    if not listed:
        raise UsageError("the list of reference pictures is empty", hint="leave it out, or give one at least")
    if isinstance(listed[0], list):
        return [each if isinstance(each, list) else [each] for each in listed]
    return [[each for each in listed if isinstance(each, Image.Image)]]


def center_cropped(picture: Image.Image, step: int) -> Image.Image:
    """Return the center of an image, with sides that are the largest multiples of `step` pixels."""
    width, height = (side // step * step for side in picture.size)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))
