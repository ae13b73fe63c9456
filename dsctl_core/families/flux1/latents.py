"""Describe FLUX.1's latent space, and convert latents to tokens with position ids.

Legend: latents (B, C, h, w), h = H / 8, w = W / 8; tokens (B, h * w / 4, 4 C) are patches of 2 x 2 latents, with the
values of a patch in the order (C, row, column); position ids (T, 3) are (image, row, column).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dsctl_core.families.flux2.latents import pack as in_rows
from dsctl_core.families.flux2.latents import patchify, unpatchify
from dsctl_core.families.flux2.latents import unpack as from_rows
from dsctl_core.media.autoencoder_kl import VAE_SCALE, decode, encode
from dsctl_core.media.latent_space import LatentSpace
from dsctl_core.memory.pinned import on_device

CHANNELS = 16
TILE_SIZE = 512  # pixels
TILE_STRIDE = 384

SPACE = LatentSpace(CHANNELS, VAE_SCALE, TILE_SIZE, TILE_STRIDE, encode, decode)


def pack(latents: Tensor) -> Tensor:
    """Reshape latents (B, C, h, w) to tokens (B, h * w / 4, 4 C), row by row."""
    return in_rows(patchify(latents))


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Undo `pack`: tokens of latents of `height` x `width` back to (B, C, h, w)."""
    return unpatchify(from_rows(tokens, height // 2, width // 2))


def places(text_tokens: int, sizes: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the position ids of the text and of the images with latent `sizes` (h, w), (T, 3) float32 each.

    The generated image, which comes first, is image 0, and all reference images are image 1, as in Kontext.
    """
    images = [
        torch.cartesian_prod(torch.tensor([min(number, 1)]), torch.arange(height // 2), torch.arange(width // 2))
        for number, (height, width) in enumerate(sizes)
    ]
    return torch.zeros(text_tokens, 3, device=device), on_device(torch.cat(images).float(), device)
