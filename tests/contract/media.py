"""Inputs for any family, whether it makes pictures or clips."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from dsctl_core.family import Family
from dsctl_core.media import Clip, Layers

FRAMES = 5


def small(family: Family) -> dict[str, Any]:
    """Options for a picture or clip that is quickly made, not square."""
    sides = {"height": 2 * family.division_factor, "width": 3 * family.division_factor}
    frames = {} if family.time_division is None else {"num_frames": FRAMES}
    return {**sides, **frames, **shown(family, **sides), "num_inference_steps": 2, "cfg_scale": 2.0}


def shown(family: Family, width: int, height: int) -> dict[str, Any]:
    """The picture without which a model that decomposes one makes nothing."""
    if not family.decomposes:
        return {}
    return {"edit_image": [Image.linear_gradient("L").resize((width, height)).convert("RGBA")]}


def filled(family: Family, picture: Image.Image) -> dict[str, Any]:
    """The input that is learned or changed: `picture`, or a clip in which it stands still."""
    return {"input_image": picture} if family.time_division is None else {"input_video": [picture] * FRAMES}


def row(family: Family, picture: Image.Image, **cells: Any) -> dict[str, Any]:
    """A row of a dataset with `picture`, or with a clip in which it stands still."""
    return {**({"image": picture} if family.time_division is None else {"video": [picture] * FRAMES}), **cells}


def pictures_of(made: Any) -> list[Image.Image]:
    """The picture, the frames of the clip, or the layers and their composite."""
    if isinstance(made, Layers):
        return list(made.pictures)
    return list(made.frames) if isinstance(made, Clip) else [made]


def pixels_of(made: Any) -> np.ndarray:
    """All pixels of a picture or clip."""
    return np.stack([np.array(picture).astype(int) for picture in pictures_of(made)])
