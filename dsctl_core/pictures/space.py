"""The space of a VAE's latents, as the denoiser of a family sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Through = Callable[[Any, Tensor, bool, int, int], Tensor]  # (vae, tensor, tiled, tile_size, tile_stride) -> tensor


@dataclass(frozen=True)
class LatentSpace:
    """Latents are (B, `channels`, H / `scale`, W / `scale`) float32 for pictures of (H, W) pixels.

    `encode` takes pictures (B, 3, H, W) in [-1, 1] there, and `decode` brings them back; both in tiles of `tile_size`
    pixels, `tile_stride` apart, where they are told to, these being the sizes that the VAE was made for.
    """

    channels: int
    scale: int
    tile_size: int
    tile_stride: int
    encode: Through
    decode: Through
