"""Define clips: the frames of a video and their frame rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Clip:
    """A video clip: frames of one size, and the frame rate `fps` in frames per second."""

    frames: tuple[Image.Image, ...]
    fps: float


Clips = Clip | list[Clip] | list[Image.Image] | list[list[Image.Image]]  # one or several clips, or lists of frames


def frames_of(clip: Any) -> list[Image.Image]:
    """Return the frames of a Clip or a list of frames; a single image is one frame."""
    if isinstance(clip, Clip):
        return list(clip.frames)
    return list(clip) if isinstance(clip, list | tuple) else [clip]


def clips_of(value: Clips) -> Sequence[list[Image.Image]]:
    """Return a list of frames for each clip in `value`, which is one clip or several."""
    if isinstance(value, Clip) or isinstance(value[0], Image.Image):
        return [frames_of(value)]
    return [frames_of(clip) for clip in value]
