"""Aspect ratio buckets: a few sizes of about the same area; each image is resized to the nearest one."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, sqrt
from typing import NamedTuple

from dsctl_core.data.sizes import Resize, require_sides
from dsctl_core.errors import UsageError

MAX_ASPECT_RATIO = 4.0  # of a bucket, as width / height or height / width


class Bucket(NamedTuple):
    """A size in pixels."""

    width: int
    height: int


def aspect_ratio_buckets(resolution: int, factor: int) -> tuple[Bucket, ...]:
    """Return the buckets of an area of at most `resolution` squared pixels, with sides that `factor` divides.

    Each width is paired with the largest height within that area, for aspect ratios from 1:4 to 4:1. The widest
    bucket is last.
    """
    area = resolution * resolution
    sizes = set()
    for width in range(factor, int(resolution * sqrt(MAX_ASPECT_RATIO)) + 1, factor):
        height = area // width // factor * factor
        if height >= factor and max(width / height, height / width) <= MAX_ASPECT_RATIO:
            sizes.add(Bucket(width, height))
            sizes.add(Bucket(height, width))
    # A bucket that fits inside a larger one has about the same aspect ratio and fewer pixels.
    largest = [b for b in sizes if not any(b != o and b.width <= o.width and b.height <= o.height for o in sizes)]
    return tuple(sorted(largest, key=lambda bucket: bucket.width / bucket.height))


class ImageToBucket(Resize):
    """Resize an image to the bucket of the nearest aspect ratio, at the highest of `resolutions` that it fills.

    An image that is smaller than the lowest resolution is enlarged to it. Raises `UsageError` for a resolution that
    is not a positive multiple of `division_factor`.
    """

    def __init__(self, resolutions: Sequence[int], division_factor: int = 16) -> None:
        if not resolutions:
            raise UsageError("there is no bucket resolution", hint="give one or more, such as 512,1024")
        for resolution in resolutions:
            if resolution < division_factor or resolution % division_factor:
                low = max(resolution // division_factor, 1) * division_factor
                raise UsageError(
                    f"the bucket resolution {resolution} is not a positive multiple of {division_factor}",
                    hint=f"the nearest are {low} and {low + division_factor}",
                )
        self.division_factor = division_factor
        self.resolutions = tuple(sorted(set(resolutions)))
        self.buckets = {each: aspect_ratio_buckets(each, division_factor) for each in self.resolutions}

    def target_size(self, width: int, height: int) -> Bucket:
        """Return the bucket of an image of `width` x `height` pixels."""
        require_sides(width, height, self.division_factor, self.division_factor)
        for resolution in reversed(self.resolutions):
            bucket = self._nearest(resolution, width / height)
            if width >= bucket.width and height >= bucket.height:
                return bucket
        return self._nearest(self.resolutions[0], width / height)

    def _nearest(self, resolution: int, aspect_ratio: float) -> Bucket:
        return min(
            self.buckets[resolution],
            key=lambda bucket: (
                abs(log(bucket.width / bucket.height) - log(aspect_ratio)),
                -bucket.width * bucket.height,
            ),
        )
