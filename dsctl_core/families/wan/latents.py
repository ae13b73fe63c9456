"""Encode and decode Wan's latents, whole or in tiles.

Legend: clips (B, 3, T, H, W) in [-1, 1], T = 4n + 1; latents (B, c, t, h, w) float32, t = n + 1, about unit variance:
c = 16 and h = H / 8 with the VAE of Wan 2.1, c = 48 and h = H / 16 with that of Wan 2.2 TI2V.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsctl_core.media.latent_space import LatentSpace, portions
from dsctl_core.media.tiles import channel_statistics, strided_tiles

TILE_SIZE, TILE_STRIDE = 256, 192  # pixels; the VAE's own defaults


def encode(vae: Any, clips: Tensor, tiled: bool, tile_size: int, tile_stride: int) -> Tensor:
    """Return the latents of `clips`: the mean of the VAE's distribution, which is deterministic."""
    tiled = tiled and max(clips.shape[-2:]) > tile_size  # the VAE would also cut what is smaller, in its units
    scale, unit = vae.config.scale_factor_spatial, vae.config.patch_size or 1  # tiles are counted in patches to encode
    with strided_tiles(vae, tiled, tile_size, tile_stride, scale=scale, unit=unit):
        raw = torch.cat([vae.encode(batch).latent_dist.mode() for batch in portions(clips.to(vae.dtype))]).float()
    mean, std = channel_statistics(vae, raw)
    return (raw - mean) / std


def decode(vae: Any, latents: Tensor, tiled: bool, tile_size: int, tile_stride: int) -> Tensor:
    """Decode `latents` to clips."""
    mean, std = channel_statistics(vae, latents)
    with strided_tiles(vae, tiled, tile_size, tile_stride, scale=vae.config.scale_factor_spatial):
        # One by one: decoding holds the activations of a whole frame at full size.
        clips = [vae.decode(each).sample for each in (latents * std + mean).to(vae.dtype).split(1)]
    return torch.cat(clips).float().clamp(-1, 1)


SPACE = LatentSpace(16, 8, TILE_SIZE, TILE_STRIDE, encode, decode, time_scale=4)
SPACE_2_2 = LatentSpace(48, 16, TILE_SIZE, TILE_STRIDE, encode, decode, time_scale=4)
