"""Write pictures with their layers, and arrange images in a grid and the frames of a clip in a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.files.png import write_png
from dsctl_core.media.clip import Clip
from dsctl_core.media.layers import Layers

if TYPE_CHECKING:
    from PIL.Image import Image

GRID_GAP = 4  # white pixels between the images of a grid


def as_picture(made: Image | Clip | Layers) -> Image:
    """Return an image unchanged, and as one image the frames of a clip, or a composite and its layers, in a row."""
    if isinstance(made, Clip):
        return grid(made.frames, len(made.frames))
    return grid(made.pictures, len(made.pictures)) if isinstance(made, Layers) else made


def layer_files(file: Path, count: int) -> list[Path]:
    """Return the files of `count` layers beside `file`, that of their composite: FILE-layer-1.png, ..."""
    return [file.with_name(f"{file.stem}-layer-{number}{file.suffix}") for number in range(1, count + 1)]


def write_layers(file: Path, made: Layers, about: dict[str, Any]) -> list[Path]:
    """Write the composite to `file` and the layers beside it, and return the files.

    `about` is the metadata; that of a layer also has its number, from 1 at the bottom.
    """
    files = layer_files(file, len(made.layers))
    for number, (path, layer) in enumerate(zip(files, made.layers, strict=True), 1):
        write_png(path, layer, {**about, "layer": number})
    write_png(file, made.composite, about)
    return [file, *files]


def grid(pictures: Sequence[Image], columns: int) -> Image:
    """Return one image with `pictures`, of one size, in rows of `columns` images; what is transparent becomes white."""
    from PIL import Image

    width, height = pictures[0].width + GRID_GAP, pictures[0].height + GRID_GAP
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * width - GRID_GAP, rows * height - GRID_GAP), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        sheet.paste(picture, (column * width, row * height), picture if picture.mode == "RGBA" else None)
    return sheet
