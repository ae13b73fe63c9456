"""Draws the training scenes and encodes them once: latents in one safetensors file, captions beside it."""

import json
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from drawings import Drawings
from scenes import captions, paint, random_scene
from vae import hold_as_frames

SCENES, CAPTIONS, BATCH = 20_000, 3, 16
LATENTS_FILE, CAPTIONS_FILE = "latents.safetensors", "captions.jsonl"


@torch.no_grad()
def cache_latents(drawings: Drawings, vae_folder: Path, folder: Path, seed: int = 1) -> None:
    """Write latents (N, 16, 12, 12), normalized, float16, and a line with the captions of each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    encode = Encoder(vae_folder)
    latents, texts = [], []
    for start in range(0, SCENES, BATCH):
        pictures = []
        for _ in range(min(BATCH, SCENES - start)):
            scene = random_scene(rng)
            pictures.append(paint(scene, drawings, rng))
            texts.append(captions(scene, rng, CAPTIONS))
        latents.append(encode(pictures).half())
    save_file({"latents": torch.cat(latents).contiguous()}, folder / LATENTS_FILE)
    lines = [json.dumps(each) for each in texts]
    (folder / CAPTIONS_FILE).write_text("\n".join(lines) + "\n")


class Encoder:
    """From pictures to normalized latents, by 2D convolutions."""

    def __init__(self, vae_folder: Path) -> None:
        self.vae = AutoencoderKLQwenImage.from_pretrained(vae_folder).float()
        config = self.vae.config
        self.mean, self.std = (
            torch.tensor(values).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std)
        )
        hold_as_frames(self.vae)

    def __call__(self, pictures: list[Image.Image]) -> Tensor:
        """Return the mean latents (B, 16, h, w) of pictures of one size."""
        x = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
        x = x.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        mean = self.vae.quant_conv(self.vae.encoder(x.unsqueeze(2))).squeeze(2).chunk(2, dim=1)[0]
        return (mean - self.mean) / self.std
