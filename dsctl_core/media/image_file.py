"""Write images to PNG files, and arrange images in a grid and the frames of a clip in a row."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.files.atomic import atomic_path
from dsctl_core.media.clip import Clip

if TYPE_CHECKING:
    from PIL.Image import Image

GRID_GAP = 4  # white pixels between the images of a grid


def write_png(file: Path, picture: Image, about: dict[str, Any]) -> None:
    """Write `picture` to `file` atomically, with `about` as JSON in the tEXt chunk "parameters"."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", json.dumps(about))
    with atomic_path(file) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)


def as_picture(made: Image | Clip) -> Image:
    """Return an image unchanged, and a clip as one image with its frames in a row."""
    return grid(made.frames, len(made.frames)) if isinstance(made, Clip) else made


def grid(pictures: Sequence[Image], columns: int) -> Image:
    """Return one image with `pictures`, which have one size, in rows of `columns` images on white."""
    from PIL import Image

    width, height = pictures[0].width + GRID_GAP, pictures[0].height + GRID_GAP
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * width - GRID_GAP, rows * height - GRID_GAP), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        sheet.paste(picture, (column * width, row * height))
    return sheet
