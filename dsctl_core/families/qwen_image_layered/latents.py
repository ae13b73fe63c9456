"""Encode and decode Qwen-Image-Layered's latents, and convert them to tokens of the transformer.

Legend: images (B, 4, H, W), RGBA in [-1, 1]; latents of a sample's F pictures (B, F, 16, h, w) float32, h = H / 8,
w = W / 8, in the order in which diffusers draws their noise; tokens (B, F * h/2 * w/2, 64).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsctl_core.families.qwen_image import latents as qwen_image
from dsctl_core.media.latent_space import LatentSpace


class LayeredSpace(LatentSpace):
    """A latent space of several pictures for each sample: of the whole picture, then of its layers."""

    def latent_shape(self, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        """Return the shape of the latents of a sample of `frames` pictures, (F, c, h, w); sizes are in pixels."""
        return (frames, *super().latent_shape(height, width))


def decode(vae: Any, latents: Tensor, tiled: bool, tile_size: int, tile_stride: int) -> Tensor:
    """Decode latents (B, F, 16, h, w) to images (B, F, 4, H, W), one by one, which needs no more memory than one."""
    flat = latents.flatten(0, 1).split(1)
    images = [qwen_image.decode(vae, each, tiled, tile_size, tile_stride) for each in flat]
    return torch.cat(images).unflatten(0, latents.shape[:2])


def pack(latents: Tensor) -> Tensor:
    """Reshape latents (B, F, C, h, w) to tokens (B, F * h/2 * w/2, 4 C), picture after picture."""
    return qwen_image.pack(latents.flatten(0, 1)).reshape(len(latents), -1, 4 * latents.shape[2])


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Undo `pack`: tokens of pictures of `height` x `width` latents back to (B, F, C, h, w)."""
    pictures = tokens.unflatten(1, (-1, height // 2 * (width // 2)))
    return qwen_image.unpack(pictures.flatten(0, 1), height, width).unflatten(0, pictures.shape[:2])


SPACE = LayeredSpace(
    qwen_image.CHANNELS,
    qwen_image.SCALE,
    qwen_image.TILE_SIZE,
    qwen_image.TILE_STRIDE,
    qwen_image.encode,
    decode,
)
