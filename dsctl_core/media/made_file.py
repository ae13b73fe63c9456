"""Write the images and clips that a pipeline returns, and tell by their metadata which command made a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.files.ownership import Kind
from dsctl_core.files.png import about_picture, write_png
from dsctl_core.media.clip import Clip
from dsctl_core.media.clip_file import FORMATS, about_clip, clip_suffix, grid_clip, write_clip
from dsctl_core.media.image_file import as_picture, grid, write_layers
from dsctl_core.media.layers import Layers

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURE_SUFFIX, CLIP_SUFFIXES = ".png", tuple(FORMATS)
SAMPLES_FOLDER = "samples"  # of a run
# Its files: the step that they were drawn after, the number of the prompt, and what `sample_suffix` returns.
SAMPLE_NAME = re.compile(r"step-(\d+)-(\d+)(\.png|\.mp4|\.webp)")


def write_made(file: Path, made: Image | Clip | Layers, about: Mapping[str, Any]) -> list[Path]:
    """Write an image as PNG, or a clip in the format of the suffix of `file`, with `about` in its metadata.

    The only frame of a clip can be written as PNG, too. Of layers, the composite is written to `file` and each layer
    beside it. Returns the files that were written.
    """
    if isinstance(made, Layers):
        return write_layers(file, made, dict(about))
    if file.suffix.lower() != PICTURE_SUFFIX:
        assert isinstance(made, Clip), "a picture is written as PNG"
        write_clip(file, made, about)
    else:
        write_png(file, made.frames[0] if isinstance(made, Clip) else made, dict(about))
    return [file]


def sample_suffix(made: Image | Clip | Layers) -> str:
    """Return the suffix of the file of a sample: that of a picture also for a clip of one frame."""
    return clip_suffix() if isinstance(made, Clip) and len(made.frames) > 1 else PICTURE_SUFFIX


def about_made(path: Path) -> dict[str, Any]:
    """Return the metadata that `write_made` wrote; {} if the file was not written by it."""
    return about_clip(path) if path.suffix.lower() in CLIP_SUFFIXES else about_picture(path)


def grid_of(made: Sequence[Image | Clip | Layers], columns: int) -> Image | Clip:
    """Return one image of images, or one clip of clips, in rows of `columns`; a composite and its layers are a row."""
    clips = [each for each in made if isinstance(each, Clip)]
    if clips:
        return grid_clip(clips, columns)
    return grid([as_picture(each) for each in made], 1 if isinstance(made[0], Layers) else columns)


# Both have the seed; only a sample of a run has the step that it was drawn after.
DRAWN = Kind(
    "a picture or clip of `dsctl infer`",
    lambda path: bool(about := about_made(path)) and not {"step", "control"} & about.keys(),
)
SAMPLE = Kind("a sample of `dsctl train`", lambda path: "step" in about_made(path))
