"""Dawn's latents: clips (B, 3, T, H, W) in [-1, 1] to (B, 16, t, H / 8, W / 8) and back, T = 4n + 1 and t = n + 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsctl_core.media.latent_space import LatentSpace, portions


def encode(vae: Any, clips: Tensor, tiled: bool, tile_size: int, tile_stride: int) -> Tensor:
    """Return the latents of `clips`: the mean of the VAE's distribution."""
    raw = torch.cat([vae.encode(each).latent_dist.mode() for each in portions(clips.to(vae.dtype))]).float()
    mean, std = _statistics(vae, raw)
    return (raw - mean) / std


def decode(vae: Any, latents: Tensor, tiled: bool, tile_size: int, tile_stride: int) -> Tensor:
    """Return the clips of `latents`."""
    mean, std = _statistics(vae, latents)
    return vae.decode((latents * std + mean).to(vae.dtype)).sample.float().clamp(-1, 1)


def _statistics(vae: Any, like: Tensor) -> list[Tensor]:
    values = (vae.config.latents_mean, vae.config.latents_std)
    return [torch.tensor(each, device=like.device).view(1, -1, 1, 1, 1) for each in values]


SPACE = LatentSpace(16, 8, 256, 192, encode, decode, time_scale=4)
