"""The VAE on pictures, without the frames that are not there: the same numbers, with a third of the work."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dsctl_core.families.qwen_image.pipeline import QwenImagePipeline


def encoded(vae: Any, video: Tensor) -> Tensor:
    return vae.encode(video).latent_dist.mode()


def decoded(vae: Any, video: Tensor) -> Tensor:
    """Decode latents that are made of the pixels: three channels are as good as any."""
    return vae.decode(video.repeat(1, 6, 1, 1, 1)[:, :16]).sample


def video(frames: int) -> Tensor:
    return torch.randn(1, 3, frames, 16, 24, generator=torch.Generator().manual_seed(0))


WAYS = pytest.mark.parametrize("way", [encoded, decoded])


@WAYS
def test_a_picture_comes_out_as_the_official_vae_has_it(
    pipe: QwenImagePipeline, official: Any, way: Callable[[Any, Tensor], Tensor]
):
    with torch.no_grad():
        torch.testing.assert_close(way(pipe.vae, video(1)), way(official.vae, video(1)), atol=1e-5, rtol=1e-5)


@WAYS
def test_a_video_is_left_to_the_official_code(
    pipe: QwenImagePipeline, official: Any, way: Callable[[Any, Tensor], Tensor]
):
    with torch.no_grad():
        torch.testing.assert_close(way(pipe.vae, video(5)), way(official.vae, video(5)), atol=1e-5, rtol=1e-5)


@WAYS
def test_a_picture_takes_less_than_half_of_the_multiplications(
    pipe: QwenImagePipeline, official: Any, way: Callable[[Any, Tensor], Tensor]
):
    counts = []
    for vae in (pipe.vae, official.vae):
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            way(vae, video(1))
        counts.append(counted.get_total_flops())
    assert 0.3 < counts[0] / counts[1] < 0.5


def test_training_it_has_the_official_gradients(pipe: QwenImagePipeline, official: Any):
    gradients = []
    for original in (pipe.vae, official.vae):
        vae: Any = deepcopy(original).requires_grad_(True)
        encoded(vae, video(1)).square().mean().backward()
        gradients.append({name: p.grad for name, p in vae.encoder.named_parameters() if p.grad is not None})
    ours, theirs = gradients
    assert set(ours) == set(theirs) != set()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-5, rtol=1e-4, msg=name)


def test_names_and_weights_stay_as_they_are(pipe: QwenImagePipeline, official: Any):
    ours, theirs = pipe.component("vae").state_dict(), official.vae.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
