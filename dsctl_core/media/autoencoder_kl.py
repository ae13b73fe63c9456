"""Encode and decode with diffusers' AutoencoderKL, whole or in square tiles that overlap by a quarter.

Legend: images (B, 3, H, W) in [-1, 1]; latents (B, C, h, w) float32, h = H / 8, w = W / 8, about unit variance.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dsctl_core.errors import UsageError
from dsctl_core.media.latent_space import portions
from dsctl_core.media.tiles import tiling

STEP = 32  # tile sizes are multiples of this, so that a quarter of a tile is a whole number of latents
VAE_SCALE = 8
OVERLAP = 0.25


@contextmanager
def overlapping_tiles(vae: Any, tiled: bool, tile_size: int, tile_stride: int) -> Iterator[None]:
    """Enable tiling of `vae` inside the block, with square tiles of `tile_size` pixels, `tile_stride` pixels apart.

    `vae` has the attributes of diffusers' AutoencoderKL, and 8 pixels for each latent. Raises UsageError for a size or
    stride that it does not support.
    """
    if tiled and (tile_size < STEP or tile_size % STEP or 4 * tile_stride != 3 * tile_size):
        raise UsageError(
            f"a tile of {tile_size} with stride {tile_stride} is not possible",
            hint="the size is a multiple of 32, and the stride three quarters of it: this VAE's tiles overlap by one",
        )
    latents = tile_size // VAE_SCALE
    with tiling(vae, tiled, tile_sample_min_size=tile_size, tile_latent_min_size=latents, tile_overlap_factor=OVERLAP):
        yield


def encode(vae: Any, images: Tensor, tiled: bool, tile_size: int, tile_stride: int) -> Tensor:
    """Return the latents of `images`: the mean of the VAE's distribution, shifted and scaled."""
    batches = portions(images.to(vae.dtype))
    with overlapping_tiles(vae, tiled, tile_size, tile_stride):
        raw = torch.cat([vae.encode(batch).latent_dist.mode() for batch in batches]).float()
    return (raw - vae.config.shift_factor) * vae.config.scaling_factor


def decode(vae: Any, latents: Tensor, tiled: bool, tile_size: int, tile_stride: int) -> Tensor:
    """Decode `latents` to images."""
    raw = latents / vae.config.scaling_factor + vae.config.shift_factor
    with overlapping_tiles(vae, tiled, tile_size, tile_stride):
        images = vae.decode(raw.to(vae.dtype)).sample
    return images.float().clamp(-1, 1)
