"""Draws the video model's training clips and pictures and encodes them once: latents and captions of each."""

import json
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file

from drawings import Drawings
from video_vae import encode_frames, run_whole
from video_world import ACTORS, BACKGROUNDS, FRAMES, Action, clip_captions, every_action, paint_clip

CLIPS_EACH, PICTURES_EACH, BATCH = 2, 3, 4
LATENTS_FILE, CAPTIONS_FILE = "latents.safetensors", "captions.json"


@torch.no_grad()
def cache_latents(drawings: Drawings, vae_folder: Path, folder: Path, seed: int = 1) -> None:
    """Write normalized latents, float16, of clips (N, 16, 5, 8, 8) and pictures (M, 16, 1, 8, 8), and captions."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    vae = AutoencoderKLWan.from_pretrained(vae_folder).float()
    mean, std = (
        torch.tensor(numbers).view(1, -1, 1, 1, 1) for numbers in (vae.config.latents_mean, vae.config.latents_std)
    )
    run_whole(vae)
    actions = {"clips": every_action() * CLIPS_EACH}
    stills = [Action(word, "still", where) for word in ACTORS for where in BACKGROUNDS]
    actions["pictures"] = stills * PICTURES_EACH
    latents, captions = {}, {}
    for kind, chosen in actions.items():
        parts = []
        for start in range(0, len(chosen), BATCH):
            frames = 1 if kind == "pictures" else FRAMES
            clips = [paint_clip(action, drawings, rng, frames) for action in chosen[start : start + BATCH]]
            z = encode_frames(vae, torch.from_numpy(np.stack(clips)))
            parts.append(((z - mean) / std).half())
        latents[kind] = torch.cat(parts).contiguous()
        captions[kind] = [clip_captions(action) for action in chosen]
    save_file(latents, folder / LATENTS_FILE)
    (folder / CAPTIONS_FILE).write_text(json.dumps(captions))
