"""Encode and decode Wan's latents, whole or in tiles.

Legend: clips (B, 3, T, H, W) in [-1, 1], T = 4n + 1; latents (B, c, t, h, w) float32, t = n + 1, about unit variance:
c = 16 and h = H / 8 with the VAE of Wan 2.1, c = 48 and h = H / 16 with that of Wan 2.2 TI2V.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dsctl_core.errors import UsageError
from dsctl_core.media.latent_space import LatentSpace, portions

TILE_SIZE, TILE_STRIDE = 256, 192  # pixels; the VAE's own defaults
# Attributes of the VAE. Where it works on 2x2 patches, it counts tiles in patches to encode and in pixels to decode.
SIDES = tuple(f"tile_sample_{what}_{side}" for what in ("min", "stride") for side in ("height", "width"))


@contextmanager
def tiles(vae: Any, tiled: bool, tile_size: int, tile_stride: int, unit: int = 1) -> Iterator[None]:
    """Enable tiling of `vae` inside the block, with square tiles of `tile_size` pixels, `tile_stride` pixels apart.

    The VAE counts them in units of `unit` pixels.
    """
    scale = vae.config.scale_factor_spatial
    if tiled and not (0 < tile_stride <= tile_size and tile_size % scale == 0 and tile_stride % scale == 0):
        raise UsageError(
            f"a tile of {tile_size} with stride {tile_stride} is not possible",
            hint=f"both are multiples of {scale}, and the stride is at most the size",
        )
    before = {name: getattr(vae, name) for name in ("use_tiling", *SIDES)}
    vae.use_tiling = tiled
    if tiled:
        for name, value in zip(SIDES, (tile_size, tile_size, tile_stride, tile_stride), strict=True):
            setattr(vae, name, value // unit)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)


def encode(vae: Any, clips: Tensor, tiled: bool, tile_size: int, tile_stride: int) -> Tensor:
    """Return the latents of `clips`: the mean of the VAE's distribution, which is deterministic."""
    tiled = tiled and max(clips.shape[-2:]) > tile_size  # the VAE would also cut what is smaller, in its units
    with tiles(vae, tiled, tile_size, tile_stride, vae.config.patch_size or 1):
        raw = torch.cat([vae.encode(batch).latent_dist.mode() for batch in portions(clips.to(vae.dtype))]).float()
    mean, std = _statistics(vae, raw)
    return (raw - mean) / std


def decode(vae: Any, latents: Tensor, tiled: bool, tile_size: int, tile_stride: int) -> Tensor:
    """Decode `latents` to clips."""
    mean, std = _statistics(vae, latents)
    with tiles(vae, tiled, tile_size, tile_stride):
        # One by one: decoding holds the activations of a whole frame at full size.
        clips = [vae.decode(each).sample for each in (latents * std + mean).to(vae.dtype).split(1)]
    return torch.cat(clips).float().clamp(-1, 1)


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of each latent channel, both (1, c, 1, 1, 1)."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=like.device).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std


SPACE = LatentSpace(16, 8, TILE_SIZE, TILE_STRIDE, encode, decode, time_scale=4)
SPACE_2_2 = LatentSpace(48, 16, TILE_SIZE, TILE_STRIDE, encode, decode, time_scale=4)
