"""A dataset of one row for any model: what it is trained on, at the size that it was published for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from dsctl_core.families.resolve import ResolvedModel, resolve_model

PROMPT = "a red bicycle leaning on a white wall in the evening sun, photographed from the other side of the road"


def write_data(model: str, folder: Path) -> dict[str, Any]:
    """Write a dataset for `model` into `folder`; return the options for it."""
    resolved = resolve_model(model)
    defaults, inputs = resolved.defaults, resolved.family.extra_inputs
    height, width, frames = defaults["height"], defaults["width"], defaults.get("num_frames")
    options: dict[str, Any] = {"dataset_base_path": str(folder), "height": height, "width": width}
    row: dict[str, Any] = {"prompt": PROMPT, "image": "image.png"}
    picture = Image.new("RGB", (width, height), "red")
    picture.save(folder / "image.png")
    if "layers" in inputs:
        row = {"prompt": PROMPT, "layers": ["layer.png"] * 3}
        layer = Image.new("RGBA", (width, height), "red")
        layer.paste((0, 0, 0, 0), (0, 0, width // 2, height))
        layer.save(folder / "layer.png")
        options |= {"data_file_keys": "layers", "extra_inputs": "layers"}
    elif "edit" in resolved.family.name:
        row["edit_image"] = "image.png"
        options |= {"data_file_keys": "image,edit_image", "extra_inputs": "edit_image"}
    elif resolved.parts.kind == "fill":  # FLUX.1 Fill
        row["inpaint_mask"] = "image.png"
        options |= {"data_file_keys": "image,inpaint_mask", "extra_inputs": "inpaint_mask"}
    if frames is not None:
        row = {"prompt": PROMPT, "video": "clip.gif"}
        others = [Image.new("RGB", (width, height), (200, number, 0)) for number in range(2 * frames)]
        picture.save(folder / "clip.gif", save_all=True, append_images=others, duration=1000 / 25)
        options |= {"num_frames": frames, "short_clips": "shorten", "data_file_keys": "video"}
    (folder / "metadata.json").write_text(json.dumps([row]), encoding="utf-8")
    return {**options, "dataset_metadata_path": str(folder / "metadata.json")}


def inputs_of(resolved: ResolvedModel) -> dict[str, Path]:
    """Return the pictures that the model cannot draw without, or is made to draw from, by the names of options."""
    family, picture = resolved.family, Path("image.png")
    if family.decomposes or "edit" in family.name:
        return {"edit_image": picture}
    if resolved.parts.kind == "fill":  # FLUX.1 Fill
        return {"input_image": picture, "inpaint_mask": picture}
    return dict.fromkeys(family.frame_inputs(resolved.parts).needed, picture)
