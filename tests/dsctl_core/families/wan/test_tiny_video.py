"""The embedded model of clips makes what it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsctl_core.families.resolve import resolve_model
from dsctl_core.media import Clip

BLUE = np.array([48, 92, 220])


def middles(clip: Clip) -> list[float]:
    """Return how far right the middle of what is not blue is in each frame, in parts of the width."""
    found = []
    for frame in clip.frames:
        other = np.abs(np.asarray(frame).astype(int) - BLUE).max(axis=2) > 60
        found.append(float(np.nonzero(other)[1].mean()) / frame.width)
    return found


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    pipe = resolve_model("tiny-video").load_pipeline(torch_dtype=torch.float32, device="cpu")
    prompts = [f"an apple moves to the {side} on a blue background" for side in ("left", "right")]
    return pipe(prompt=prompts, seed=0, num_inference_steps=8)


def test_the_embedded_model_has_the_size_length_and_rate_that_it_was_trained_on(clips: list[Clip]):
    assert [(len(clip.frames), clip.fps, clip.frames[0].size) for clip in clips] == [(17, 8, (64, 64))] * 2


def test_the_embedded_model_moves_a_thing_to_the_side_that_is_asked_for(clips: list[Clip]):
    to_left, to_right = map(middles, clips)
    assert to_left[-1] < to_left[0] - 0.15
    assert to_right[-1] > to_right[0] + 0.15


def test_the_embedded_model_puts_a_thing_on_the_background_that_is_asked_for(clips: list[Clip]):
    corners = [np.asarray(clip.frames[8])[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int) for clip in clips]
    assert np.abs(np.stack(corners) - BLUE).max() < 40
