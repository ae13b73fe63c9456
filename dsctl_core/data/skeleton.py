"""Draw people as the skeletons that control networks for poses are trained on: OpenPose's 18 points, in its colours."""

from __future__ import annotations

import colorsys
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dsctl_core.data.control_pictures import opencv

if TYPE_CHECKING:
    from PIL.Image import Image

# The key points of COCO, in its order (Lin et al. 2014; https://cocodataset.org/#keypoints-2020).
COCO: tuple[str, ...] = ("nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder")
COCO += ("left elbow", "right elbow", "left wrist", "right wrist", "left hip", "right hip")
COCO += ("left knee", "right knee", "left ankle", "right ankle")

# Those of OpenPose (Cao et al. 2019), in the order of its colours. COCO has no neck: it is amid the shoulders.
OPENPOSE: tuple[str, ...] = ("nose", "neck", "right shoulder", "right elbow", "right wrist")
OPENPOSE += ("left shoulder", "left elbow", "left wrist")
OPENPOSE += ("right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle")
OPENPOSE += ("right eye", "left eye", "right ear", "left ear")

# Chains of limbs from the neck, in the order of their colours: both shoulders come first, and then the arms.
CHAINS = (
    *(("neck", f"{side} shoulder") for side in ("right", "left")),
    *((f"{side} shoulder", f"{side} elbow", f"{side} wrist") for side in ("right", "left")),
    *(("neck", f"{side} hip", f"{side} knee", f"{side} ankle") for side in ("right", "left")),
    ("neck", "nose"),
    *(("nose", f"{side} eye", f"{side} ear") for side in ("right", "left")),
)
LIMBS = tuple(pair for chain in CHAINS for pair in zip(chain, chain[1:], strict=False))

LEAST = 0.3  # the confidence below which a key point is left out
WIDTH = 1 / 128  # of the shorter side, the radius of a point and half the width of a limb: 4 of 512 pixels
LIMB_LIGHT = 0.6  # of the brightness of a point


def colour(number: int, light: float = 1.0) -> tuple[int, int, int]:
    """Return the colour (red, green, blue) of a point or a limb: the colour circle in steps of 20 degrees from red."""
    red, green, blue = colorsys.hsv_to_rgb(number / len(OPENPOSE), 1, 1)
    return int(round(255 * red, 6) * light), int(round(255 * green, 6) * light), int(round(255 * blue, 6) * light)


def draw_people(people: np.ndarray[Any, Any], size: tuple[int, int]) -> Image:
    """Return a picture of `size` (width, height) with the skeletons of `people` on black.

    Args:
        people: COCO's key points (N, 17, 3) of N people: x and y in pixels of the picture, and a confidence from 0 to
            1. Those below LEAST are left out, with their limbs; the neck needs both shoulders.
        size: Width and height of the picture, from which the sizes of points and limbs follow.
    """
    from PIL import Image

    cv2 = opencv()
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    radius = max(round(WIDTH * min(size)), 1)
    for person in people:
        points = visible(person)
        for number, (one, other) in enumerate(LIMBS):
            if one in points and other in points:
                limb = _limb(cv2, points[one], points[other], radius)
                cv2.fillConvexPoly(canvas, limb, colour(number, LIMB_LIGHT))
        for number, name in enumerate(OPENPOSE):
            if name in points:
                x, y = points[name]
                cv2.circle(canvas, (round(x), round(y)), radius, colour(number), thickness=-1)
    return Image.fromarray(canvas)


def visible(person: np.ndarray[Any, Any]) -> dict[str, tuple[float, float]]:
    """Return the place (x, y) of each of OpenPose's points that can be seen, from COCO's key points (17, 3)."""
    seen = {name: (float(x), float(y)) for name, (x, y, score) in zip(COCO, person, strict=True) if score >= LEAST}
    if "left shoulder" in seen and "right shoulder" in seen:
        (x, y), (other_x, other_y) = seen["left shoulder"], seen["right shoulder"]
        seen["neck"] = ((x + other_x) / 2, (y + other_y) / 2)
    return seen


def _limb(cv2: Any, one: tuple[float, float], other: tuple[float, float], radius: int) -> Any:
    """Return the corners of an ellipse from one point to another."""
    across, down = other[0] - one[0], other[1] - one[1]
    middle = (round((one[0] + other[0]) / 2), round((one[1] + other[1]) / 2))
    axes = (round(math.hypot(across, down) / 2), radius)
    return cv2.ellipse2Poly(middle, axes, round(math.degrees(math.atan2(down, across))), 0, 360, 1)
