"""Let units call `pipe.vae.encode(images, tiled=...)`: latents of the pipeline, from the VAE of diffusers."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from dsctl_core.media.latent_space import LatentSpace

UNSET: Any = object()  # an argument that was not passed; None is the default of the latent space


def add_tiled_methods(vae: nn.Module, space: LatentSpace) -> None:
    """Give `encode` and `decode` of `vae` the arguments `tiled`, `tile_size` and `tile_stride`.

    With any of them, `vae.encode` turns images (B, 3, H, W) or clips (B, 3, T, H, W) in [-1, 1] into latents of
    `space`, and `vae.decode` reverses it. Without, both are the methods of the class of `vae`, unchanged.
    """
    for name, through in (("encode", space.encode), ("decode", space.decode)):
        setattr(vae, name, partial(_call, vae, getattr(type(vae), name), through, space))


def _call(
    vae: nn.Module,
    method: Any,
    through: Any,
    space: LatentSpace,
    x: Tensor,
    *arguments: Any,
    tiled: Any = UNSET,
    tile_size: Any = UNSET,
    tile_stride: Any = UNSET,
    **options: Any,
) -> Any:
    """Return `method(vae, x, ...)`, or the result of `through`, a function of `space`, if a tile argument is passed."""
    if tiled is UNSET and tile_size is UNSET and tile_stride is UNSET:
        return method(vae, x, *arguments, **options)
    if arguments or options:
        unknown = next(iter(options), "a second position")
        raise TypeError(f"{method.__name__}() with tiles takes one tensor and no {unknown}")
    size = space.tile_size if tile_size in (UNSET, None) else tile_size
    stride = space.tile_stride if tile_stride in (UNSET, None) else tile_stride
    if space.time_scale is not None and x.ndim == 4:
        x = x.unsqueeze(2)  # an image is a clip of one frame
    return through(vae, x, tiled not in (UNSET, None, False), size, stride)
