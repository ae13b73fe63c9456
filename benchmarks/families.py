"""The random models, datasets and cached inputs with which train_step.py measures further families."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

WIDTH = {"attention_head_dim": 64, "num_attention_heads": 8}
ROPE = {"axes_dims_rope": (16, 24, 24)}
# The sizes of the transformers that differ from the tiny ones; the encoders stay tiny, for steps do not run them.
MEDIUM: dict[str, dict[str, Any]] = {
    "flux1": {**WIDTH, **ROPE, "num_layers": 3, "num_single_layers": 6},
    "qwen-image-edit": {**WIDTH, **ROPE, "num_layers": 8},
    "wan": {**WIDTH, "num_layers": 8, "ffn_dim": 2048},
}
FRAMES = {"wan": 9}  # of a clip
FLAGS: dict[str, tuple[object, ...]] = {
    "qwen-image-edit": ("--data-file-keys", "image,edit_image", "--extra-inputs", "edit_image"),
    "wan": ("--data-file-keys", "video", "--num-frames", FRAMES["wan"]),
}


def write_family(family: str, folder: Path, medium: bool, side: int) -> None:
    """Write a random model of `family`: with a transformer of medium size, or all of it tiny."""
    import diffusers
    import torch

    from tests.tiny_models import write_tiny_model

    write_tiny_model(family, folder)
    index = json.loads((folder / "model_index.json").read_text())
    if "reference_pixels" in index:
        (folder / "model_index.json").write_text(json.dumps({**index, "reference_pixels": side * side}))
    if medium:
        place = folder / "transformer"
        config = json.loads((place / "config.json").read_text())
        sizes = {name: value for name, value in config.items() if not name.startswith("_")}
        shutil.rmtree(place)
        torch.manual_seed(0)
        getattr(diffusers, config["_class_name"])(**{**sizes, **MEDIUM[family]}).save_pretrained(place)


def write_family_dataset(family: str, folder: Path, samples: int, side: int) -> None:
    """Write pictures, pairs or clips of noise, each with a prompt of its own."""
    from PIL import Image

    folder.mkdir(parents=True)
    rows = []
    for number in range(samples):
        images = [Image.effect_noise((side, side), 40 + number).convert("RGB") for _ in range(FRAMES.get(family, 2))]
        row = {"prompt": f"picture number {number} of a thing {'on a red table ' * (number % 3)}"}
        if family in FRAMES:
            row["video"] = f"{number}.gif"
            images[0].save(folder / row["video"], save_all=True, append_images=images[1:], duration=60)
        else:
            names = ("image", "edit_image") if family in FLAGS else ("image",)
            for name, image in zip(names, images, strict=False):
                row[name] = f"{number}-{name}.png"
                image.save(folder / row[name])
        rows.append(json.dumps(row) + "\n")
    (folder / "metadata.jsonl").write_text("".join(rows), encoding="utf-8")


def copy_cached(cache: Path, file: Path) -> None:
    """Write the inputs of every sample of a cache into one file, for a side that knows nothing of caches."""
    import torch
    from safetensors.torch import save_file

    from dsctl_core.cache.reader import CachedDataset

    dataset, tensors = CachedDataset(cache), {}
    for number, entry in enumerate(dataset.entries):
        for name, value in dataset.sample(entry).items():
            if isinstance(value, torch.Tensor):
                own = name.partition(".")[2]
                tensors[f"{number}.{'latents' if own == 'input_latents' else own}"] = value.float().contiguous()
    save_file(tensors, file)
