"""Control pictures: edges where a picture has some, and coarse versions of the same size."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dsctl_core.data.control_pictures import KINDS, from_values


def square() -> Image.Image:
    """A red square of 32 pixels on blue."""
    picture = Image.new("RGB", (96, 64), (20, 30, 200))
    picture.paste((220, 40, 30), (32, 16, 64, 48))
    return picture


@pytest.mark.parametrize("kind", KINDS)
def test_a_control_picture_has_the_size_of_its_picture_and_is_the_same_again(kind: str) -> None:
    made = KINDS[kind](square())
    assert (made.mode, made.size) == ("RGB", (96, 64))
    assert made.tobytes() == KINDS[kind](square()).tobytes()
    assert made.tobytes() != square().tobytes()


@pytest.mark.parametrize("kind", ["canny", "soft-edge"])
def test_edges_are_at_the_border_of_the_square_alone(kind: str) -> None:
    made = np.array(KINDS[kind](square()).convert("L")).astype(int)
    assert made.max() == 255
    near = np.zeros((64, 96), dtype=bool)
    near[12:52, 28:68] = True
    near[20:44, 36:60] = False
    assert made[~near].max() < 16
    for side in (made[32, 28:36], made[32, 60:68], made[12:20, 48], made[44:52, 48]):
        assert side.max() > 200


def test_a_plain_picture_has_no_edges() -> None:
    plain = Image.new("RGB", (64, 64), (120, 90, 10))
    assert not np.array(KINDS["canny"](plain)).any()
    assert not np.array(KINDS["soft-edge"](plain)).any()


def test_coarse_pictures_keep_colours_and_lose_details() -> None:
    noise = Image.effect_noise((128, 128), 120).convert("RGB")
    plain = np.array(noise).astype(float)
    for kind in ("tile", "blur"):
        made = np.array(KINDS[kind](noise)).astype(float)
        assert abs(made.mean() - plain.mean()) < 2
        assert made.std() < 0.35 * plain.std()
    grey = np.array(KINDS["gray"](square()))
    assert (grey == grey[..., :1]).all()


def test_values_go_from_black_to_white() -> None:
    made = np.array(from_values(np.array([[2.0, 3.0], [4.0, 2.0]])))
    assert made[..., 0].tolist() == [[0, 128], [255, 0]]
    assert not np.array(from_values(np.full((2, 2), 7.0))).any()
