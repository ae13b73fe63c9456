"""Draws the training scenes and encodes them once: latents in one safetensors file, captions beside it."""

import json
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage
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
    vae = AutoencoderKLQwenImage.from_pretrained(vae_folder).float()
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
    hold_as_frames(vae)
    latents, texts = [], []
    for start in range(0, SCENES, BATCH):
        pictures = []
        for _ in range(min(BATCH, SCENES - start)):
            scene = random_scene(rng)
            pictures.append(np.asarray(paint(scene, drawings, rng)))
            texts.append(captions(scene, rng, CAPTIONS))
        x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        with torch.autocast("cpu", torch.bfloat16):
            z = encode_mean(vae, x).float()
        latents.append(((z - mean) / std).half())
    save_file({"latents": torch.cat(latents).contiguous()}, folder / LATENTS_FILE)
    lines = [json.dumps(each) for each in texts]
    (folder / CAPTIONS_FILE).write_text("\n".join(lines) + "\n")


def encode_mean(vae: AutoencoderKLQwenImage, x: Tensor) -> Tensor:
    """Return the mean latents (B, 16, h, w) of pictures (B, 3, H, W), by 2D convolutions."""
    return vae.quant_conv(vae.encoder(x.unsqueeze(2))).squeeze(2).chunk(2, dim=1)[0]
