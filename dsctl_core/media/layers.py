"""Define layers: transparent images that lie on each other, and their composite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from dsctl_core.errors import DsctlError


@dataclass(frozen=True)
class Layers:
    """A picture as `layers`: RGBA images of one size, from the bottom to the top."""

    layers: tuple[Image.Image, ...]

    @property
    def composite(self) -> Image.Image:
        """The layers on each other, as RGBA."""
        return composite_of(self.layers)

    @property
    def pictures(self) -> tuple[Image.Image, ...]:
        """The composite, then the layers."""
        return (self.composite, *self.layers)


def composite_of(layers: Sequence[Image.Image]) -> Image.Image:
    """Return images of one size on each other, the first at the bottom, as RGBA (the "over" of Porter and Duff)."""
    lowest, *others = (layer.convert("RGBA") for layer in layers)
    for layer in others:
        lowest = Image.alpha_composite(lowest, layer)
    return lowest


def require_visible(layers: Sequence[Image.Image]) -> None:
    """Raise DsctlError for a layer above another one that has no transparent pixel, and so hides it."""
    for number, layer in enumerate(layers[1:], 2):
        if not layer.has_transparency_data or layer.convert("RGBA").getchannel("A").getextrema()[0] == 255:
            raise DsctlError(
                f"layer {number} of {len(layers)} has no transparent pixel, so nothing can be seen of those below it",
                hint="list the layers from the bottom to the top, without the composite, as files with transparency",
            )
