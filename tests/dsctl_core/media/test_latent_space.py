"""How many pictures go through a VAE together."""

from __future__ import annotations

import pytest
import torch

from dsctl_core.media.latent_space import portions


@pytest.mark.parametrize(
    ("count", "height", "width", "expected"),
    [
        (5, 512, 512, [4, 1]),
        (3, 1024, 1024, [1, 1, 1]),
        (2, 2048, 1024, [1, 1]),
        (40, 256, 128, [32, 8]),
        (2, 700, 700, [2]),
        (2, 800, 700, [1, 1]),
    ],
)
def test_a_megapixel_goes_through_at_once_or_one_picture(count: int, height: int, width: int, expected: list[int]):
    images = torch.empty(count, 3, height, width, device="meta")
    assert [len(each) for each in portions(images)] == expected


def test_on_a_cpu_each_goes_alone_and_all_of_them_do():
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 8, 8)
    assert torch.cat(portions(images)).equal(images)
    assert [len(each) for each in portions(images)] == [1, 1, 1]
