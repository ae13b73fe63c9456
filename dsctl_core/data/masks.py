"""Masks of pictures and clips, which say what counts in the loss: from a column of files, or from an alpha channel.

A mask goes along with the target of its row, in size, crop and frames, and so can other columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.data.defaults import for_one_or_several
from dsctl_core.data.facts import Known
from dsctl_core.data.images import LoadImage, open_image
from dsctl_core.data.kinds import VIDEO_SUFFIXES
from dsctl_core.data.operators import Operator, ToAbsolutePath
from dsctl_core.data.problems import DataError
from dsctl_core.data.routing import RouteByExtensionName, RouteByType, ToList
from dsctl_core.data.sizes import Fit, Resize
from dsctl_core.errors import UsageError
from dsctl_core.readable import counted

if TYPE_CHECKING:
    from PIL import Image as PilImage

MASK = "mask"  # the column of masks, and the extra input that asks for them
BLACK_MASK = "leave out such rows, or their masks"  # what to do about a mask by which nothing counts


class LoadAlpha(Operator):
    """Load the alpha channel of a picture as 8-bit grey: white where it is opaque, all white where it has none."""

    def __init__(self, known: Known | None = None) -> None:
        self.known = known

    def __call__(self, value: str | Path) -> PilImage.Image:
        """Decode the picture; raise `DataError` for a file that is missing, damaged or not a picture."""
        return LoadImage(convert_RGBA=True)(value).getchannel("A")

    def preview(self, value: str | Path) -> tuple[int, int]:
        """Return (width, height) from the header."""
        return LoadImage(known=self.known).preview(value)


class NoAlpha(Operator):
    """Refuse a video, whose alpha channel is not read."""

    def __call__(self, value: str | Path) -> Any:
        """Raise `DataError`."""
        raise DataError(
            f"{value} is a video, and masks are read from the alpha channels of pictures alone",
            hint="name masks in a column, with --data-file-keys video,mask",
            kind="video",
        )

    def preview(self, value: str | Path) -> Any:
        """Raise `DataError`."""
        return self(value)


def alpha_operator(
    base_path: str | Path, resize: Resize, *, allow_outside: bool, clips: bool, known: Known | None = None
) -> RouteByType:
    """Return the operator from the file name of a picture to its alpha channel, resized as the picture is.

    With `clips` it is a list of one frame.
    """
    load: Operator = LoadAlpha(known) >> resize
    if clips:
        videos = ("gif", *(suffix.removeprefix(".") for suffix in VIDEO_SUFFIXES))
        load = RouteByExtensionName(((videos, NoAlpha()), (None, load >> ToList())))
    to_path = ToAbsolutePath(base_path, allow_outside, checked_next=known is not None)
    return for_one_or_several(to_path >> load)


def refuse_opaque(paths: Iterable[Path]) -> None:
    """Raise UsageError if none of the pictures has transparency, so that a mask from it has no effect.

    The headers are read up to the first that has. A file that cannot be opened is a problem of its own, found where its
    row is checked.
    """
    for path in paths:
        try:
            with open_image(path) as image:
                if image.has_transparency_data:
                    return
        except DataError:
            return
    raise UsageError(
        "--mask-from-alpha has no effect: no picture has an alpha channel",
        hint="leave it out, or name masks in a column: --data-file-keys image,mask",
    )


def require_fitting(target: Any, mask: Any, what: str = MASK, *, still: bool = True) -> None:
    """Raise `DataError` for a mask whose preview, (width, height[, frames]), does not fit that of its target.

    `what` is the name of its column. If `still`, a single picture is that of all frames of a clip.
    """
    (size, frames), (own, own_frames) = _size_and_frames(target), _size_and_frames(mask)
    if own != size:
        raise DataError(
            f"the {what} becomes {own[0]}x{own[1]} pixels, and what it belongs to {size[0]}x{size[1]}",
            hint=f"give a {what} of the size of its picture",
            kind="size",
        )
    if own_frames != frames and not (still and own_frames == 1):
        raise DataError(
            f"the {what} has {counted(own_frames, 'frame')}, and what it belongs to {frames}",
            hint=f"give {'one picture for all frames, or ' if still else ''}a clip of the same length",
            kind="video",
        )


def require_same_shape(size: tuple[int, int], own: tuple[int, int], what: str = MASK) -> None:
    """Raise `DataError` for a mask of the (width, height) `own`, whose crop is another than that of `size`."""
    if abs(size[0] * own[1] - own[0] * size[1]) > max(*size, *own):
        raise DataError(
            f"the {what} is {own[0]}x{own[1]} pixels, of another shape than the {size[0]}x{size[1]} of its picture",
            hint=f"give a {what} of the size of its picture",
            kind="size",
        )


def require_same_crop(fits: Mapping[str, Any], target: str, what: str = MASK) -> None:
    """Raise `DataError` if the mask of a row was cropped to another part than its target, by their `Fit`."""
    whole, mask = _first_fit(fits.get(target)), _first_fit(fits.get(what))
    if whole is not None and mask is not None:
        require_same_shape(whole.original, mask.original, what)


def _size_and_frames(preview: Any) -> tuple[tuple[int, int], int]:
    if isinstance(preview, list):
        return tuple(preview[0][:2]), len(preview)
    return tuple(preview[:2]), preview[2] if len(preview) > 2 else 1


def _first_fit(fits: Any) -> Fit | None:
    return _first_fit(fits[0]) if isinstance(fits, list) else fits
