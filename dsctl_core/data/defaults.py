"""The operators that fit most datasets: from what a cell holds to pictures, or to the frames of a video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsctl_core.data.folder import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from dsctl_core.data.images import LoadImage
from dsctl_core.data.operators import Operator, SequentialProcess, ToAbsolutePath
from dsctl_core.data.routing import RouteByExtensionName, RouteByType, ToList
from dsctl_core.data.sizes import ImageCropAndResize, Resize
from dsctl_core.data.video import LoadGIF, LoadVideo, ShortClips


def default_image_operator(
    base_path: str | Path = "",
    max_pixels: int | None = None,
    height: int | None = None,
    width: int | None = None,
    height_division_factor: int = 16,
    width_division_factor: int = 16,
    allow_outside: bool = False,
    resize: Resize | None = None,
) -> RouteByType:
    """Return the operator from a file name below `base_path`, or a list of them, to RGB pictures that fit the model.

    `resize` replaces the one that the sizes describe.
    """
    resize = resize or ImageCropAndResize(height, width, max_pixels, height_division_factor, width_division_factor)
    return _of_one_or_several(ToAbsolutePath(base_path, allow_outside) >> LoadImage() >> resize)


def default_video_operator(
    base_path: str | Path = "",
    max_pixels: int | None = 1920 * 1080,
    height: int | None = None,
    width: int | None = None,
    height_division_factor: int = 16,
    width_division_factor: int = 16,
    num_frames: int | None = 81,
    time_division_factor: int = 4,
    time_division_remainder: int = 1,
    fps: float | None = None,
    short: ShortClips = "refuse",
    allow_outside: bool = False,
    resize: Resize | None = None,
) -> RouteByType:
    """Return the operator from a file name below `base_path`, or a list of them, to lists of frames.

    A picture becomes a list of one frame.
    """
    resize = resize or ImageCropAndResize(height, width, max_pixels, height_division_factor, width_division_factor)
    frames: tuple[Any, ...] = (num_frames, time_division_factor, time_division_remainder, resize, fps, short)
    by_suffix = RouteByExtensionName(
        (
            (("gif",), LoadGIF(*frames)),
            (_without_dot(IMAGE_SUFFIXES), LoadImage() >> resize >> ToList()),
            (_without_dot(VIDEO_SUFFIXES), LoadVideo(*frames)),
        )
    )
    return _of_one_or_several(ToAbsolutePath(base_path, allow_outside) >> by_suffix)


def _of_one_or_several(operator: Operator) -> RouteByType:
    return RouteByType(((str, operator), (list, SequentialProcess(operator))))


def _without_dot(suffixes: Sequence[str]) -> tuple[str, ...]:
    return tuple(suffix.removeprefix(".") for suffix in suffixes)
