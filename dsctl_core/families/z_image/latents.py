"""Encode and decode Z-Image's latents, whole or in tiles.

Legend: images (B, 3, H, W) in [-1, 1]; latents (B, 16, h, w) float32, h = H / 8, w = W / 8, about unit variance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsctl_core.media.latent_space import LatentSpace, portions
from dsctl_core.media.tiling import overlapping_tiles

CHANNELS = 16
SCALE = 8
TILE_SIZE = 512  # pixels
TILE_STRIDE = 384


def encode(vae: Any, images: Tensor, tiled: bool, tile_size: int, tile_stride: int) -> Tensor:
    """Return the latents of `images`: the mean of the VAE's distribution, which is deterministic."""
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


SPACE = LatentSpace(CHANNELS, SCALE, TILE_SIZE, TILE_STRIDE, encode, decode)
