"""Describe the latent space of a VAE: shapes, encoding and decoding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Through = Callable[[Any, Tensor, bool, int, int], Tensor]  # (vae, tensor, tiled, tile_size, tile_stride) -> tensor
PIXELS_AT_ONCE = 1024 * 1024  # limit of pixels that a GPU encodes together; a single image may have more


def portions(images: Tensor) -> tuple[Tensor, ...]:
    """Split images (B, 3, H, W), or clips (B, 3, T, H, W), into chunks that the VAE processes together.

    On a CPU a chunk is one sample: convolutions of a batch use another algorithm, which rounds differently and is
    slower from 256 x 256 pixels on. On other devices a chunk is at most a megapixel, so that a batch needs no more
    memory than one image of that size.
    """
    pixels = math.prod(images.shape[2:])
    return images.split(1 if images.device.type == "cpu" else max(PIXELS_AT_ONCE // pixels, 1))


@dataclass(frozen=True)
class LatentSpace:
    """The shape of latents, and the functions that encode and decode them.

    Latents of images are (B, `channels`, h, w) float32, with h = H / `scale` and w = W / `scale`. With a `time_scale`,
    latents are (B, `channels`, t, h, w): the first frame is one latent frame, and each further `time_scale` frames are
    one, so that 4n + 1 frames are n + 1 latent frames for a `time_scale` of 4. An image is then a clip of one frame.

    `encode` turns images (B, 3, H, W) or clips (B, 3, T, H, W) in [-1, 1] into latents, and `decode` reverses it; both
    optionally in tiles. `tile_size` and `tile_stride`, in pixels, are the defaults for which the VAE was made.
    """

    channels: int
    scale: int
    tile_size: int
    tile_stride: int
    encode: Through
    decode: Through
    time_scale: int | None = None

    def latent_frames(self, frames: int) -> int:
        """Return the number of latent frames of `frames` frames; 1 in a latent space of images."""
        return 1 if self.time_scale is None else (frames - 1) // self.time_scale + 1

    def latent_shape(self, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        """Return the shape of the latents of one sample, (c, h, w) or (c, t, h, w); `height` and `width` in pixels."""
        time = () if self.time_scale is None else (self.latent_frames(frames),)
        return (self.channels, *time, height // self.scale, width // self.scale)
