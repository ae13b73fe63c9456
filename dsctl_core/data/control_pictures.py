"""Make control pictures of pictures: edges, soft edges, brightness, and coarse versions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from dsctl_core.errors import DsctlError

if TYPE_CHECKING:
    from PIL.Image import Image

LOW, HIGH = 100, 200  # of 255: the thresholds of Canny's hysteresis that published control networks were trained with
TILE = 8  # a tile picture has one pixel for this many
SMOOTH, BLUR = 1 / 256, 1 / 64  # of the longer side: the deviation of the filter before soft edges, and of a blur


def canny(picture: Image) -> Image:
    """Return the edges of `picture`, white on black (Canny 1986)."""
    return _rgb(opencv().Canny(np.array(picture.convert("L")), LOW, HIGH))


def soft_edge(picture: Image) -> Image:
    """Return the strength of the edges of `picture`: the norm of Sobel's gradient, the largest in white."""
    cv2 = opencv()
    deviation = max(SMOOTH * max(picture.size), 0.5)
    grey = cv2.GaussianBlur(np.array(picture.convert("L"), dtype=np.float32), (0, 0), deviation)
    norm = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    return _rgb((norm * (255 / max(float(norm.max()), 1.0))).astype(np.uint8))


def gray(picture: Image) -> Image:
    """Return the brightness of `picture`."""
    return picture.convert("L").convert("RGB")


def tile(picture: Image) -> Image:
    """Return `picture` with the details of an eighth of its size."""
    from PIL.Image import Resampling

    small = picture.resize((max(picture.width // TILE, 1), max(picture.height // TILE, 1)), Resampling.BOX)
    return small.resize(picture.size, Resampling.BICUBIC)


def blur(picture: Image) -> Image:
    """Return `picture` behind a Gaussian blur of 1/64 of its longer side."""
    from PIL.ImageFilter import GaussianBlur

    return picture.filter(GaussianBlur(BLUR * max(picture.size)))


def from_values(values: np.ndarray[Any, Any]) -> Image:
    """Return `values` (H, W) as a grey picture, the least in black and the largest in white."""
    low, high = float(values.min()), float(values.max())
    return _rgb(((values - low) * (255 / ((high - low) or 1.0))).round().astype(np.uint8))


KINDS: dict[str, Callable[[Image], Image]] = {
    "canny": canny,
    "soft-edge": soft_edge,
    "gray": gray,
    "tile": tile,
    "blur": blur,
}


def _rgb(values: np.ndarray[Any, Any]) -> Image:
    from PIL import Image

    return Image.fromarray(values).convert("RGB")


def opencv() -> Any:
    """Return the module cv2, which is optional; raise DsctlError if it cannot be imported."""
    try:
        import cv2
    except ImportError as error:
        raise DsctlError(
            f"this kind of control picture needs OpenCV, which cannot be imported: {error}",
            hint='install it with: pip install "dsctl[annotate]"',
        ) from error
    return cv2
