"""Tiny random Wan VACE models with one and with two denoisers, loaded by this project and by diffusers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.dsctl_core.families.wan.conftest import SIZE, Pair, clip, noisy, pair_in
from tests.tiny_models import write_tiny_wan_vace

SIDES = {"width": SIZE["width"], "height": SIZE["height"]}
# Reference images that lie, stand and are larger than the clip, with sides that are no multiples of eight.
REFERENCES = [noisy(40, 50, 30), noisy(41, 17, 41), noisy(42, 200, 90)]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair_in("vace", write_tiny_wan_vace(tmp_path_factory.mktemp("tiny-wan-vace") / "one"))


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """With two denoisers."""
    return pair_in("vace-a14b", write_tiny_wan_vace(tmp_path_factory.mktemp("tiny-wan-vace") / "two", two=True))


def mask(seed: int = 0, **sides: int) -> Image.Image:
    """A mask with black, white and grey parts."""
    levels = np.random.default_rng(seed).choice([0, 100, 127, 128, 255], (4, 6)).astype(np.uint8)
    sides = sides or SIDES
    return Image.fromarray(levels).resize((sides["width"], sides["height"]), Image.Resampling.NEAREST)


def masks(seed: int = 0, frames: int = SIZE["num_frames"], **sides: int) -> list[Image.Image]:
    """A mask for each frame, all of them different."""
    return [mask(100 * seed + number, **sides) for number in range(frames)]


# What a clip follows, as arguments of a call.
FOLLOWED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a video": {"vace_video": clip(5)},
    "a video and its mask": {"vace_video": clip(5), "vace_video_mask": masks(6)},
    "one reference": {"vace_reference_image": REFERENCES[:1]},
    "three references": {"vace_reference_image": REFERENCES},
    "all": {"vace_video": clip(5), "vace_video_mask": masks(6), "vace_reference_image": REFERENCES[:2]},
}
