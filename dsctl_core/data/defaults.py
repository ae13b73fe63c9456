"""Build the default operators: from the file names in a cell to images, or to the frames of videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsctl_core.data.facts import Known
from dsctl_core.data.frame_rule import Extraction, FrameRule, ShortClips
from dsctl_core.data.images import LoadImage
from dsctl_core.data.kinds import VIDEO_SUFFIXES
from dsctl_core.data.operators import Operator, SequentialProcess, ToAbsolutePath
from dsctl_core.data.routing import RouteByExtensionName, RouteByType, RouteFolders, ToList
from dsctl_core.data.sizes import ImageCropAndResize, Resize
from dsctl_core.data.video import LoadFrames, LoadGIF, LoadVideo


def default_image_operator(
    base_path: str | Path = "",
    max_pixels: int | None = None,
    height: int | None = None,
    width: int | None = None,
    height_division_factor: int = 16,
    width_division_factor: int = 16,
    allow_outside: bool = False,
    resize: Resize | None = None,
    convert_RGBA: bool = False,
    known: Known | None = None,
) -> RouteByType:
    """Return the operator from a file name, or a list of file names, to RGB images of a size that the model takes.

    Args:
        base_path: The folder that file names are relative to.
        max_pixels: Larger images are scaled down to this area; None: no limit.
        height: The height of every image; None: each keeps its own size.
        width: The width of every image, together with `height`.
        height_division_factor: Heights are cropped to a multiple of this.
        width_division_factor: Widths are cropped to a multiple of this.
        allow_outside: Whether file names may lead out of `base_path`.
        resize: Resizes images instead of the five sizes above.
        convert_RGBA: Whether images keep their transparency, as RGBA.
        known: What is known of the files already, so that a preview does not open them.
    """
    resize = resize or ImageCropAndResize(height, width, max_pixels, height_division_factor, width_division_factor)
    to_path = ToAbsolutePath(base_path, allow_outside, checked_next=known is not None)
    return for_one_or_several(to_path >> LoadImage(convert_RGBA, known) >> resize)


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
    extraction: Extraction = "head",
    allow_outside: bool = False,
    resize: Resize | None = None,
    clip: int = 0,
    frame_rate: Any = None,
    known: Known | None = None,
) -> RouteByType:
    """Return the operator from a file name, or a list of file names, to lists of RGB frames.

    An image becomes a list of one frame, and a folder of images a list of its images.

    Args:
        base_path: The folder that file names are relative to.
        max_pixels: Larger frames are scaled down to this area; None: no limit.
        height: The height of every frame; None: each video keeps its own size.
        width: The width of every frame, together with `height`.
        height_division_factor: Heights are cropped to a multiple of this.
        width_division_factor: Widths are cropped to a multiple of this.
        num_frames: The number of frames of a clip; None: the whole clip.
        time_division_factor: Clips have `time_division_factor` * n + `time_division_remainder` frames.
        time_division_remainder: See `time_division_factor`.
        fps: Frames per second to sample; None: every frame.
        short: Whether a clip with too few frames is refused or shortened.
        extraction: Whether the frames are from the beginning, spread over the whole clip, or those of one of its clips.
        allow_outside: Whether file names may lead out of `base_path`.
        resize: Resizes frames instead of the five sizes above.
        clip: The number of the clip, from 0, with the extraction "every".
        frame_rate: The cell with the frames per second of a folder of images; None: all of its images are taken.
        known: What is known of the files already, so that a preview does not open them.
    """
    resize = resize or ImageCropAndResize(height, width, max_pixels, height_division_factor, width_division_factor)
    count = (num_frames, time_division_factor, time_division_remainder)
    chosen: tuple[Any, ...] = (fps, short, extraction, clip)
    folder = LoadFrames(FrameRule(*count, *chosen), resize, frame_rate)
    chosen = (*chosen, known)
    by_suffix = RouteByExtensionName(
        (
            (("gif",), LoadGIF(*count, resize, *chosen)),
            (_without_dot(VIDEO_SUFFIXES), LoadVideo(*count, resize, *chosen)),
            # Everything else is a picture, whatever its suffix, or a problem that names it.
            (None, LoadImage(known=known) >> resize >> ToList()),
        )
    )
    return for_one_or_several(ToAbsolutePath(base_path, allow_outside, folders=True) >> RouteFolders(folder, by_suffix))


def for_one_or_several(operator: Operator) -> RouteByType:
    """Return the operator for a cell with one file name, or a list of them."""
    return RouteByType(((str, operator), (list, SequentialProcess(operator))))


def _without_dot(suffixes: Sequence[str]) -> tuple[str, ...]:
    return tuple(suffix.removeprefix(".") for suffix in suffixes)
