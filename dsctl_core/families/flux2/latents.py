"""Encode and decode FLUX.2's latents (whole or in tiles), and convert them to tokens with position ids.

Legend: images (B, 3, H, W) in [-1, 1]; latents (B, 128, h, w) float32, h = H / 16, w = W / 16, which are the VAE's 32
channels in 2x2 patches, each of about unit variance; tokens (B, h * w, 128); position ids (T, 4) are (image, row,
column, word), from which the transformer computes rotary embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dsctl_core.media.autoencoder_kl import overlapping_tiles
from dsctl_core.media.latent_space import LatentSpace, portions
from dsctl_core.memory.pinned import on_device

CHANNELS = 128
SCALE = 16
TILE_SIZE = 512  # pixels
TILE_STRIDE = 384
PICTURE_STEP = 10  # distance of reference images on the image axis of position ids; the generated image is at 0


def encode(vae: Any, images: Tensor, tiled: bool, tile_size: int, tile_stride: int) -> Tensor:
    """Return the latents of `images`: the mean of the VAE's distribution, which is deterministic."""
    batches = portions(images.to(vae.dtype))
    with overlapping_tiles(vae, tiled, tile_size, tile_stride):
        raw = torch.cat([vae.encode(batch).latent_dist.mode() for batch in batches]).float()
    mean, std = _statistics(vae)
    return (patchify(raw) - mean) / std


def decode(vae: Any, latents: Tensor, tiled: bool, tile_size: int, tile_stride: int) -> Tensor:
    """Decode `latents` to images."""
    mean, std = _statistics(vae)
    with overlapping_tiles(vae, tiled, tile_size, tile_stride):
        images = vae.decode(unpatchify(latents * std + mean).to(vae.dtype)).sample
    return images.float().clamp(-1, 1)


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of each channel, (1, 128, 1, 1) each, from the VAE's batch norm."""
    mean, variance = (each.float().view(1, -1, 1, 1) for each in (vae.bn.running_mean, vae.bn.running_var))
    return mean, torch.sqrt(variance + vae.config.batch_norm_eps)


def patchify(raw: Tensor) -> Tensor:
    """Reshape (B, C, 2 h, 2 w) to (B, 4 C, h, w), with the values of a patch in the order (C, row, column)."""
    batch, channels, height, width = raw.shape
    patches = raw.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 1, 3, 5, 2, 4).reshape(batch, channels * 4, height // 2, width // 2)


def unpatchify(latents: Tensor) -> Tensor:
    """Undo `patchify`: (B, 4 C, h, w) back to (B, C, 2 h, 2 w)."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels // 4, 2, 2, height, width)
    return patches.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels // 4, height * 2, width * 2)


def pack(latents: Tensor) -> Tensor:
    """Reshape latents (B, C, h, w) to tokens (B, h * w, C), row by row."""
    return latents.flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Undo `pack`: tokens (B, h * w, C) of latents of `height` x `width` back to (B, C, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def picture_places(sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Return the position ids (T, 4) of images with latent `sizes` (h, w): the generated one, then references."""
    parts = [
        torch.cartesian_prod(
            torch.tensor([number * PICTURE_STEP]), torch.arange(height), torch.arange(width), torch.tensor([0])
        )
        for number, (height, width) in enumerate(sizes)
    ]
    return on_device(torch.cat(parts), device)


def text_places(tokens: int, device: torch.device) -> Tensor:
    """Return the position ids (T, 4) of `tokens` text tokens."""
    places = torch.zeros(tokens, 4, dtype=torch.long, device=device)
    places[:, 3] = torch.arange(tokens, device=device)
    return places


SPACE = LatentSpace(CHANNELS, SCALE, TILE_SIZE, TILE_STRIDE, encode, decode)
