"""Buckets: a few sizes of about the same number of pixels, one of which every picture is brought to."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, sqrt
from typing import NamedTuple

from dsctl_core.data.sizes import Resize, require_sides
from dsctl_core.errors import UsageError

WIDEST = 4.0  # the most extreme shape that gets a bucket of its own, as width / height or height / width


class Bucket(NamedTuple):
    """A size in pixels."""

    width: int
    height: int


def aspect_ratio_buckets(resolution: int, factor: int) -> tuple[Bucket, ...]:
    """Return the sizes of at most `resolution` squared pixels with sides that are multiples of `factor`.

    For each width there is the largest height that stays within that area, shapes from 1:4 to 4:1; widest last.
    """
    area = resolution * resolution
    found = set()
    for width in range(factor, int(resolution * sqrt(WIDEST)) + 1, factor):
        height = area // width // factor * factor
        if height >= factor and max(width / height, height / width) <= WIDEST:
            found.add(Bucket(width, height))
            found.add(Bucket(height, width))
    # Of two with the same shape or nearly so, a smaller one inside a larger one is of no use.
    useful = [b for b in found if not any(b != o and b.width <= o.width and b.height <= o.height for o in found)]
    return tuple(sorted(useful, key=lambda bucket: bucket.width / bucket.height))


class ImageToBucket(Resize):
    """Bring a picture to the bucket of the nearest shape, at the highest of `resolutions` that it fills.

    A picture that is smaller than the lowest resolution is enlarged to it.
    """

    def __init__(self, resolutions: Sequence[int], division_factor: int = 16) -> None:
        if not resolutions:
            raise UsageError("no bucket resolution is given", hint="give one or more, such as 512,1024")
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
        """Return the bucket of a picture of this size."""
        require_sides(width, height, self.division_factor, self.division_factor)
        for resolution in reversed(self.resolutions):
            bucket = self._nearest(resolution, width / height)
            if width >= bucket.width and height >= bucket.height:
                return bucket
        return self._nearest(self.resolutions[0], width / height)

    def _nearest(self, resolution: int, shape: float) -> Bucket:
        return min(
            self.buckets[resolution],
            key=lambda bucket: (abs(log(bucket.width / bucket.height) - log(shape)), -bucket.width * bucket.height),
        )
