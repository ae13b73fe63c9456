"""Convert images of Pillow to tensors, and back.

Legend: tensors are (B, 3, H, W) in [-1, 1], or (B, 4, H, W) for RGBA.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dsctl_core.checkpoint.finite import find_not_finite
from dsctl_core.errors import DsctlError


def to_pixels(image: Image.Image, keep_alpha: bool = False) -> Tensor:
    """Return an image as a tensor (1, 3, H, W) float32, in which transparent pixels become white.

    With `keep_alpha` it is (1, 4, H, W), RGBA.
    """
    if image.has_transparency_data and not keep_alpha:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert("RGBA" if keep_alpha else "RGB")
    pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)  # (H, W, 3 or 4)
    return (2 * pixels - 1).permute(2, 0, 1).unsqueeze(0)


def to_images(images: Tensor) -> list[Image.Image]:
    """Return `images` as images of Pillow, each value rounded to the nearest of 256 levels.

    Raises DsctlError for values that are not finite.
    """
    if find_not_finite([("image", images)]) is not None:
        raise DsctlError(
            "the picture has values that are no finite numbers, so nothing can be seen on it",
            hint="use bfloat16 or float32 instead of float16, and a smaller scale of each LoRA",
        )
    levels = (images.float() * 0.5 + 0.5).clamp(0, 1) * 255
    pixels = levels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(each) for each in pixels]
