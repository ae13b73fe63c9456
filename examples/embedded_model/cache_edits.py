"""Draws the training edits and encodes them once: pictures in one safetensors file, instructions beside it."""

import json
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from cache_latents import Encoder
from drawings import Drawings
from edits import Edit, paint_picture, random_edit

EDITS, BATCH = 16_000, 16
PICTURES_FILE, INSTRUCTIONS_FILE = "edits.safetensors", "instructions.jsonl"
SEEN_SIDE = 84  # pixels of a picture's side as the vision tower gets it: the multiple of 28 that is nearest to 96


@torch.no_grad()
def cache_edits(drawings: Drawings, vae_folder: Path, folder: Path, count: int = EDITS, seed: int = 3) -> None:
    """Write what training reads of `count` edits.

    The safetensors file has, of all pictures P of all edits, `latents` (P, 16, 12, 12), normalized, float16, and
    `seen` (P, 84, 84, 3), uint8; a line of the other file has the places of an edit's sources and of its target among
    them, and its wordings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    encode = Encoder(vae_folder)
    latents, seen, lines, place = [], [], [], 0
    for start in range(0, count, BATCH):
        edits: list[Edit] = [random_edit(rng) for _ in range(min(BATCH, count - start))]
        pictures = []
        for edit in edits:
            pictures += [paint_picture(picture, drawings) for picture in (*edit.sources, edit.target)]
            several = len(edit.sources)
            sources = list(range(place, place + several))
            lines.append(json.dumps({"sources": sources, "target": place + several, "wordings": edit.wordings}))
            place += several + 1
        latents.append(encode(pictures).half())
        seen += [np.asarray(as_seen(picture)) for picture in pictures]
    tensors = {"latents": torch.cat(latents).contiguous(), "seen": torch.from_numpy(np.stack(seen))}
    save_file(tensors, folder / PICTURES_FILE)
    (folder / INSTRUCTIONS_FILE).write_text("\n".join(lines) + "\n")


def as_seen(picture: Image.Image) -> Image.Image:
    """Resize a picture as the processor of the vision tower does."""
    return picture.resize((SEEN_SIDE, SEEN_SIDE), Image.Resampling.BICUBIC)
