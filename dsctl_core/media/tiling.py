"""Enable tiling of a VAE of diffusers whose tiles are squares that overlap by a quarter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dsctl_core.errors import UsageError

STEP = 32  # tile sizes are multiples of this, so that a quarter of a tile is a whole number of latents
VAE_SCALE = 8


@contextmanager
def overlapping_tiles(vae: Any, tiled: bool, tile_size: int, tile_stride: int) -> Iterator[None]:
    """Enable tiling of `vae` inside the block, with square tiles of `tile_size` pixels, `tile_stride` pixels apart.

    `vae` has the attributes of diffusers' AutoencoderKL, and 8 pixels for each latent. Raises UsageError for a size or
    stride that it does not support.
    """
    if tiled and (tile_size < STEP or tile_size % STEP or 4 * tile_stride != 3 * tile_size):
        raise UsageError(
            f"a tile of {tile_size} with stride {tile_stride} is not possible",
            hint="the size is a multiple of 32, and the stride three quarters of it: this VAE's tiles overlap by one",
        )
    names = ("use_tiling", "tile_sample_min_size", "tile_latent_min_size", "tile_overlap_factor")
    before = {name: getattr(vae, name) for name in names}
    vae.use_tiling = tiled
    if tiled:
        vae.tile_sample_min_size, vae.tile_latent_min_size = tile_size, tile_size // VAE_SCALE
        vae.tile_overlap_factor = 0.25
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)
