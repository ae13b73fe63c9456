"""Describe Z-Image's latent space, which is that of FLUX.1: 16 channels, an eighth of the size in pixels."""

from __future__ import annotations

from dsctl_core.media.autoencoder_kl import decode, encode
from dsctl_core.media.latent_space import LatentSpace

TILE_SIZE = 512  # pixels
TILE_STRIDE = 384

SPACE = LatentSpace(16, 8, TILE_SIZE, TILE_STRIDE, encode, decode)
