"""The space of a VAE's latents, as the denoiser of a family sees it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Through = Callable[[Any, Tensor, bool, int, int], Tensor]  # (vae, tensor, tiled, tile_size, tile_stride) -> tensor
PIXELS_AT_ONCE = 1024 * 1024  # that a GPU encodes together; one picture alone may have more


def portions(images: Tensor) -> tuple[Tensor, ...]:
    """Split pictures (B, 3, H, W), or clips (B, 3, T, H, W), into those that go through the VAE together.

    On a CPU each goes alone: several are convolved another way, which rounds otherwise, and from 256 pixels a side on
    more slowly. Elsewhere a megapixel goes together, so that a batch takes no more memory than a picture of that size.
    """
    pixels = math.prod(images.shape[2:])
    return images.split(1 if images.device.type == "cpu" else max(PIXELS_AT_ONCE // pixels, 1))


@dataclass(frozen=True)
class LatentSpace:
    """Latents of pictures are (B, `channels`, h, w) float32, with h = H / `scale` and w = W / `scale`.

    Those of clips are (B, `channels`, t, h, w), in a space that has a `time_scale`: the first frame is a latent frame
    alone, and every `time_scale` frames after it are one, so that 4n + 1 frames are n + 1 at a scale of 4. There a
    picture is a clip of one frame.

    `encode` takes pictures (B, 3, H, W) or clips (B, 3, T, H, W) in [-1, 1] there, and `decode` brings them back; both
    in tiles of `tile_size` pixels, `tile_stride` apart, where they are told to, these being the sizes that the VAE was
    made for.
    """

    channels: int
    scale: int
    tile_size: int
    tile_stride: int
    encode: Through
    decode: Through
    time_scale: int | None = None

    def latent_frames(self, frames: int) -> int:
        """Return how many latent frames `frames` are; of a picture it is one."""
        return 1 if self.time_scale is None else (frames - 1) // self.time_scale + 1

    def latent_shape(self, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        """Return the shape of one sample's latents, (c, h, w) or (c, t, h, w), for so many pixels and frames."""
        time = () if self.time_scale is None else (self.latent_frames(frames),)
        return (self.channels, *time, height // self.scale, width // self.scale)
