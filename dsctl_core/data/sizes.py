"""Resize and crop images to the sizes that a model takes."""

from __future__ import annotations

from abc import abstractmethod
from math import isqrt
from typing import TYPE_CHECKING, Any, NamedTuple

from dsctl_core.data.operators import Operator
from dsctl_core.data.problems import DataError
from dsctl_core.errors import DsctlError, UsageError

if TYPE_CHECKING:
    from PIL import Image as PilImage

ROUNDED_TO = 32  # pixels; to multiples of this, diffusers' pipelines round the sides of reference images


class Fit(NamedTuple):
    """The crop and the scale of a resized image: the part `box` of the original, scaled by `scale`.

    `original` and `size` are (width, height); `box` is (left, top, right, bottom) in pixels of the original.
    """

    original: tuple[int, int]
    size: tuple[int, int]
    scale: float
    box: tuple[float, float, float, float]


class Resize(Operator):
    """Resize an image to `target_size`, keeping its aspect ratio and its centre.

    The image is scaled (Lanczos) until it covers the target size, then cropped at the centre. `fit` returns the crop
    and the scale; the result has them in `info["fit"]` too.
    """

    @abstractmethod
    def target_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) after resizing an image of this size; raise `DataError` if it is too small."""

    def fit(self, width: int, height: int) -> Fit:
        """Return the crop and the scale of an image of this size."""
        across, down = self.target_size(width, height)
        scale = self.scale(width, height, (across, down))
        box_width, box_height = min(across / scale, width), min(down / scale, height)
        left, top = (width - box_width) / 2, (height - box_height) / 2
        if scale == 1.0:  # cropping only: whole pixels, so that their values do not change
            left, top = (width - across) // 2, (height - down) // 2
        return Fit((width, height), (across, down), scale, (left, top, left + box_width, top + box_height))

    def scale(self, width: int, height: int, target: tuple[int, int]) -> float:
        """Return the smallest scale at which an image covers `target`, a (width, height)."""
        return max(target[0] / width, target[1] / height)

    def __call__(self, value: PilImage.Image) -> PilImage.Image:
        """Return the image, resized to its target size."""
        from PIL import Image

        fit = self.fit(*value.size)
        if fit.scale == 1.0:
            left, top, right, bottom = (int(side) for side in fit.box)
            result = value.crop((left, top, right, bottom))
        else:
            result = value.resize(fit.size, Image.Resampling.LANCZOS, box=fit.box)
        result.info["fit"] = fit
        return result

    def preview(self, value: tuple[int, int]) -> tuple[int, int]:
        """Return the target size for a (width, height)."""
        return self.target_size(*value)


class ImageCropAndResize(Resize):
    """Resize an image to one size for all, or crop it to a size near its own.

    With `height` and `width` every image gets that size: it is scaled to cover it, then cropped at the centre. Without
    them an image of more than `max_pixels` is scaled down to that area, and no image is enlarged. Both sides are then
    cropped to multiples of the division factors. Raises `UsageError` for sizes that are not such multiples.
    """

    def __init__(
        self,
        height: int | None = None,
        width: int | None = None,
        max_pixels: int | None = None,
        height_division_factor: int = 16,
        width_division_factor: int = 16,
    ) -> None:
        if (height is None) != (width is None):
            present, missing = ("height", "width") if width is None else ("width", "height")
            raise UsageError(f"{present} is set without {missing}", hint="give both, or neither for dynamic sizes")
        for name, side, factor in (("height", height, height_division_factor), ("width", width, width_division_factor)):
            if side is not None and (side < factor or side % factor):
                lower = max(side // factor, 1) * factor
                raise UsageError(
                    f"{name} {side} is not a positive multiple of {factor}",
                    hint=f"the nearest sizes are {lower} and {lower + factor}" if side > factor else f"use {lower}",
                )
        smallest = height_division_factor * width_division_factor
        if max_pixels is not None and max_pixels < smallest:
            raise UsageError(
                f"max_pixels {max_pixels} is less than the smallest size of a picture", hint=f"use {smallest} or more"
            )
        self.height, self.width, self.max_pixels = height, width, max_pixels
        self.height_division_factor, self.width_division_factor = height_division_factor, width_division_factor

    def target_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) after resizing an image of this size; raise `DataError` if it is too small."""
        across, down = self.width_division_factor, self.height_division_factor
        require_sides(width, height, across, down)
        if self.width is not None and self.height is not None:
            return self.width, self.height
        scaled = (width, height)
        if self.max_pixels is not None and width * height > self.max_pixels:
            # sqrt(max_pixels * width / height), rounded down exactly: 1536x1536 must give 1024, not 1023.99 -> 1008
            scaled = (isqrt(self.max_pixels * width // height), isqrt(self.max_pixels * height // width))
        if scaled[0] < across or scaled[1] < down:
            raise DataError(
                f"the picture is {width}x{height} pixels; at {self.max_pixels} pixels it would be "
                f"{scaled[0]}x{scaled[1]}, but both sides must have at least {max(across, down)}",
                hint="crop the picture to a less extreme shape, raise --max-pixels, or remove the row",
                kind="size",
            )
        return scaled[0] // across * across, scaled[1] // down * down

    def scale(self, width: int, height: int, target: tuple[int, int]) -> float:
        """Return 1 for an image that is only cropped, else the smallest scale at which it covers `target`."""
        if self.height is None and (self.max_pixels is None or width * height <= self.max_pixels):
            return 1.0
        return super().scale(width, height, target)


def require_sides(width: int, height: int, across: int, down: int) -> None:
    """Raise `DataError` for an image that is narrower than `across` or lower than `down` pixels."""
    if width < across or height < down:
        raise DataError(
            f"the picture is {width}x{height} pixels, but both sides must have at least {max(across, down)}",
            hint="use a larger picture, or remove the row",
            kind="size",
        )


def clip_size(shape: tuple[int, int], pixels: int, factor: int) -> tuple[int, int]:
    """Return the (width, height) of a clip with the aspect ratio of `shape` and at most about `pixels` pixels.

    As the example of diffusers' WanImageToVideoPipeline has it: both sides rounded down to multiples of `factor`.
    """
    width, height = shape
    sides = (round((pixels * width / height) ** 0.5), round((pixels * height / width) ** 0.5))
    if min(sides) < factor:
        raise DsctlError(
            f"a frame of {width}x{height} pixels is too narrow for a clip of {pixels} pixels",
            hint="crop it, or give --height and --width",
        )
    return sides[0] // factor * factor, sides[1] // factor * factor


def require_same_ratio(size: tuple[int, int], target: tuple[int, int]) -> None:
    """Raise `UsageError` if stretching a picture from `size` to `target`, both (width, height), would distort it.

    It would not if `target` is a multiple of `size` with sides that are rounded to multiples of `ROUNDED_TO`.
    """
    most = ROUNDED_TO / 2
    bounds = [((wanted - most) / own, (wanted + most) / own) for own, wanted in zip(size, target, strict=True)]
    if max(low for low, _ in bounds) > min(high for _, high in bounds):
        raise UsageError(
            f"the picture is {size[0]}x{size[1]} pixels, which {target[0]}x{target[1]} would distort",
            hint="leave out the height and the width, or crop the picture",
        )


def fits_of(value: Any) -> Any:
    """Return the `Fit` of an image, or a list of them for a list of images; None for values that were not resized."""
    from PIL import Image

    if isinstance(value, list):
        fits = [fits_of(entry) for entry in value]
        return fits if any(fit is not None for fit in fits) else None
    return value.info.get("fit") if isinstance(value, Image.Image) else None
