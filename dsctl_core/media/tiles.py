"""Set the tiles of a VAE for the time of a block, and read the statistics of its latent channels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dsctl_core.errors import UsageError

SIDES = tuple(f"tile_sample_{what}_{side}" for what in ("min", "stride") for side in ("height", "width"))


@contextmanager
def tiling(vae: Any, tiled: bool, **attributes: Any) -> Iterator[None]:
    """Set `use_tiling` of `vae` inside the block, and `attributes` if `tiled`; all are as before afterwards."""
    before = {name: getattr(vae, name) for name in ("use_tiling", *attributes)}
    try:
        for name, value in {"use_tiling": tiled, **(attributes if tiled else {})}.items():
            setattr(vae, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)


@contextmanager
def strided_tiles(
    vae: Any, tiled: bool, tile_size: int, tile_stride: int, *, scale: int, unit: int = 1
) -> Iterator[None]:
    """Enable tiling of `vae` inside the block, with square tiles of `tile_size` pixels, `tile_stride` pixels apart.

    `vae` has the attributes of diffusers' AutoencoderKLQwenImage and AutoencoderKLWan, with `scale` pixels for each
    latent, and counts tiles in units of `unit` pixels. Raises UsageError for a size or stride that it does not support.
    """
    if tiled and not (0 < tile_stride <= tile_size and tile_size % scale == 0 and tile_stride % scale == 0):
        raise UsageError(
            f"a tile of {tile_size} with stride {tile_stride} is not possible",
            hint=f"both are multiples of {scale}, and the stride is at most the size",
        )
    values = (pixels // unit for pixels in (tile_size, tile_size, tile_stride, tile_stride))
    with tiling(vae, tiled, **dict(zip(SIDES, values, strict=True))):
        yield


def channel_statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of each latent channel, shaped for latents `like` (B, c, ...)."""
    shape = (1, -1, *(1 for _ in like.shape[2:]))
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=like.device).view(shape)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std
