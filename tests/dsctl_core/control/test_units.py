"""The unit of control images: one for every sample or none, of the right size, with a mask where one is taken."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from dsctl_core.control import ControlImageEmbedder
from dsctl_core.errors import DsctlError

RIGHT, OTHER = Image.new("RGB", (48, 32)), Image.new("RGB", (32, 32))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            {"control_image": OTHER, "control_mask": RIGHT},
            "the control_image is 32x32, but the width and height asked for are 48x32",
        ),
        ({"control_image": RIGHT, "control_mask": OTHER}, "the control_mask is 32x32"),
        ({"control_image": [RIGHT, None]}, "one batch has samples with and without control_image"),
        ({"control_mask": RIGHT}, "control_mask is given without control_image"),
        ({"control_image": RIGHT}, "control_image is given without control_mask"),
    ],
)
def test_pictures_that_cannot_be_used_are_refused(given: dict[str, Any], problem: str) -> None:
    unit = ControlImageEmbedder("controlnet", "control_image", "control_mask")
    with pytest.raises(DsctlError, match=problem):
        unit.process(None, height=32, width=48, **given)


def test_without_a_picture_there_is_no_control() -> None:
    unit = ControlImageEmbedder("edges")
    assert unit.process(None, height=32, width=48, edges_image=[None, None]) == {"edges_latents": None}
