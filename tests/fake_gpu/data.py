"""A dataset of one row for any model: what it is trained on, at the size that it was published for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from dsctl_core.families.resolve import resolve_model

PROMPT = "a red bicycle leaning on a white wall in the evening sun, photographed from the other side of the road"


def write_data(model: str) -> dict[str, Any]:
    """Write a dataset for `model` into the working directory; return the options for it."""
    resolved = resolve_model(model)
    defaults, inputs = resolved.defaults, resolved.family.extra_inputs
    height, width, frames = defaults["height"], defaults["width"], defaults.get("num_frames")
    options: dict[str, Any] = {"dataset_base_path": ".", "height": height, "width": width}
    row: dict[str, Any] = {"prompt": PROMPT, "image": "image.png"}
    picture = Image.new("RGB", (width, height), "red")
    picture.save("image.png")
    if "layers" in inputs:
        row = {"prompt": PROMPT, "layers": ["layer.png"] * 3}
        layer = Image.new("RGBA", (width, height), "red")
        layer.paste((0, 0, 0, 0), (0, 0, width // 2, height))
        layer.save("layer.png")
        options |= {"data_file_keys": "layers", "extra_inputs": "layers"}
    elif "edit" in resolved.family.name:
        row["edit_image"] = "image.png"
        options |= {"data_file_keys": "image,edit_image", "extra_inputs": "edit_image"}
    if frames is not None:
        row = {"prompt": PROMPT, "video": "clip.gif"}
        others = [Image.new("RGB", (width, height), (200, number, 0)) for number in range(2 * frames)]
        picture.save("clip.gif", save_all=True, append_images=others, duration=1000 / 25)
        options |= {"num_frames": frames, "short_clips": "shorten", "data_file_keys": "video"}
    Path("metadata.json").write_text(json.dumps([row]), encoding="utf-8")
    return {**options, "dataset_metadata_path": "metadata.json"}
