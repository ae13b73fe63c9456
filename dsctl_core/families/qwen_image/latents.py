"""Encode and decode Qwen-Image's latents (whole or in tiles), and convert them to tokens of the transformer.

Legend: images (B, 3, H, W) in [-1, 1]; latents (B, 16, h, w) float32, h = H / 8, w = W / 8, about unit variance;
tokens (B, h/2 * w/2, 64), one for each 2x2 patch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsctl_core.media.latent_space import LatentSpace, portions
from dsctl_core.media.tiles import channel_statistics, strided_tiles

CHANNELS = 16
SCALE = 8
TILE_SIZE = 256  # pixels; the VAE's own defaults
TILE_STRIDE = 192


def encode(vae: Any, images: Tensor, tiled: bool, tile_size: int, tile_stride: int) -> Tensor:
    """Return the latents of `images`: the mean of the VAE's distribution, which is deterministic."""
    batches = portions(images.to(vae.dtype))
    with strided_tiles(vae, tiled, tile_size, tile_stride, scale=SCALE):
        # The VAE encodes video: an image is a video of one frame.
        means = [vae.encode(batch.unsqueeze(2)).latent_dist.mode().squeeze(2) for batch in batches]
    raw = torch.cat(means).float()
    mean, std = channel_statistics(vae, raw)
    return (raw - mean) / std


def decode(vae: Any, latents: Tensor, tiled: bool, tile_size: int, tile_stride: int) -> Tensor:
    """Decode `latents` to images."""
    mean, std = channel_statistics(vae, latents)
    with strided_tiles(vae, tiled, tile_size, tile_stride, scale=SCALE):
        images = vae.decode((latents * std + mean).to(vae.dtype).unsqueeze(2)).sample.squeeze(2)
    # The VAE clamps its output to [-1, 1] only without tiling.
    return images.float().clamp(-1, 1)


def pack(latents: Tensor) -> Tensor:
    """Reshape latents (B, C, h, w) to tokens (B, h/2 * w/2, 4 C), with a patch in the order (C, row, column)."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, height // 2 * (width // 2), channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Undo `pack`: tokens (B, h/2 * w/2, 4 C) of a latent of `height` x `width` back to (B, C, h, w)."""
    patches = tokens.reshape(len(tokens), height // 2, width // 2, -1, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, height, width)


SPACE = LatentSpace(CHANNELS, SCALE, TILE_SIZE, TILE_STRIDE, encode, decode)
