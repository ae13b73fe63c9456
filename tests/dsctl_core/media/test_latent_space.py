"""The number of images in one VAE call, and the shapes of latents with and without a time axis."""

from __future__ import annotations

import pytest
import torch

from dsctl_core.media.latent_space import LatentSpace, portions
from dsctl_core.media.units import mask_in_time


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


def test_clips_count_their_frames():
    clips = torch.empty(3, 3, 5, 512, 512, device="meta")
    assert [len(each) for each in portions(clips)] == [1, 1, 1]
    assert [len(each) for each in portions(clips[:, :, :1])] == [3]


@pytest.mark.parametrize(("frames", "latent"), [(1, 1), (5, 2), (9, 3), (81, 21)])
def test_the_first_frame_is_a_latent_frame_and_every_group_after_it_one(frames: int, latent: int):
    def nothing(*_: object) -> torch.Tensor:
        raise AssertionError

    clips = LatentSpace(16, 8, 256, 192, nothing, nothing, time_scale=4)
    assert clips.latent_shape(32, 48, frames) == (16, latent, 4, 6)
    pictures = LatentSpace(16, 8, 256, 192, nothing, nothing)
    assert pictures.latent_shape(32, 48) == (16, 4, 6)
    assert pictures.latent_frames(1) == 1


def test_a_mask_in_time_is_the_first_frame_then_the_means_of_groups():
    masks = torch.arange(9.0).view(9, 1, 1, 1)
    assert mask_in_time(masks, 4).shape == (1, 1, 3, 1, 1)
    assert mask_in_time(masks, 4).flatten().tolist() == [0, 2.5, 6.5]
    assert mask_in_time(masks[:1], 4).flatten().tolist() == [0]
