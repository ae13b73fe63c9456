"""Folders of frames: each is a clip, its pictures in the order of their names with numbers as numbers."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.data.images import LoadImage
from dsctl_core.data.kinds import picture_suffixes
from dsctl_core.data.problems import DataError, explained_os_errors
from dsctl_core.data.stacks import names_in
from dsctl_core.remote import anywhere

if TYPE_CHECKING:
    from PIL import Image as PilImage

RATE_COLUMN = "fps"  # the column of the frame rates of folders


def frames_in(folder: Path) -> list[Path]:
    """Return the pictures in a folder of frames, sorted by name with numbers as numbers: 2.png before 10.png.

    Raises `DataError` for a folder without files, and for one with anything but pictures; hidden files do not count.
    """
    with explained_os_errors(folder):
        paths = [folder / name for name in names_in(folder)]
        odd = next(
            (path for path in paths if path.suffix.lower() not in picture_suffixes() or anywhere.is_dir(path)), None
        )
    if odd is not None:
        raise DataError(
            f"{odd} is not a picture, and all that is in a folder of frames must be",
            hint="move it out of the folder, or name a video file",
            kind="not a picture",
        )
    if not paths:
        raise DataError(
            f"{folder} is a folder without frames", hint="name a file, or add the frames of a clip", kind="path"
        )
    return paths


def files_of(path: Path) -> list[Path]:
    """Return the files that a path of a clip stands for: the pictures of a folder of frames, or the file itself."""
    return frames_in(path) if anywhere.is_dir(path) else [path]


def frame_sizes(paths: list[Path]) -> Iterator[tuple[int, int]]:
    """Yield the (width, height) of frames from their headers; raise `DataError` for one that differs from the first."""
    first: tuple[int, int] | None = None
    for path in paths:
        size = LoadImage().preview(path)
        first = first or size
        require_size(path, size, paths[0], first)
        yield size


def require_size(path: Path, size: tuple[int, int], first: Path, expected: tuple[int, int]) -> None:
    """Raise `DataError` if the (width, height) of a frame is not that of the first frame."""
    if size != expected:
        raise DataError(
            f"{path} is {size[0]}x{size[1]}, but {first.name} is {expected[0]}x{expected[1]}",
            hint="give the frames of a clip one size",
            kind="size",
        )


def load_frames(paths: list[Path], wanted: list[int]) -> Iterator[PilImage.Image]:
    """Yield the pictures with the indices `wanted` as RGB images; raise `DataError` for one of another size."""
    expected = LoadImage().preview(paths[0])
    for number in wanted:
        frame = LoadImage()(paths[number])
        require_size(paths[number], frame.size, paths[0], expected)
        yield frame


def frame_times(count: int, rate: float) -> tuple[array[float], float]:
    """Return the times of `count` frames at `rate` frames a second, and the end of the last one, in seconds."""
    return array("d", (number / rate for number in range(count))), count / rate


def frame_rate(cell: Any, sampled: float | None) -> float:
    """Return the frame rate of a folder: that of its row, else the rate that frames are taken at, which takes each.

    Raises `DataError` for a `cell` that is not a frame rate.
    """
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return sampled or 1.0
    try:
        rate = float(cell) if isinstance(cell, str | int | float) and not isinstance(cell, bool) else math.nan
    except ValueError:
        rate = math.nan
    if not 0 < rate <= 1000:
        raise DataError(
            f"the row has {RATE_COLUMN} {cell!r}, which is no frame rate",
            hint="write the frames a second of the folder, such as 24, or leave the cell empty",
            kind="video",
        )
    return rate
