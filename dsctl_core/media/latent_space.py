"""The space of a VAE's latents, as the denoiser of a family sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Through = Callable[[Any, Tensor, bool, int, int], Tensor]  # (vae, tensor, tiled, tile_size, tile_stride) -> tensor
PIXELS_AT_ONCE = 1024 * 1024  # that a GPU encodes together; one picture alone may have more


def portions(images: Tensor) -> tuple[Tensor, ...]:
    """Split pictures (B, 3, H, W) into those that go through the VAE together.

    On a CPU each goes alone: several are convolved another way, which rounds otherwise, and from 256 pixels a side on
    more slowly. Elsewhere a megapixel goes together, so that a batch takes no more memory than a picture of that size.
    """
    pixels = images.shape[-1] * images.shape[-2]
    return images.split(1 if images.device.type == "cpu" else max(PIXELS_AT_ONCE // pixels, 1))


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
