"""A clip: the frames of a video and how fast they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Clip:
    """Frames of one size, shown `fps` a second."""

    frames: tuple[Image.Image, ...]
    fps: float


Clips = Clip | list[Clip] | list[Image.Image] | list[list[Image.Image]]  # one clip, or several, maybe as bare frames


def frames_of(clip: Any) -> list[Image.Image]:
    """Return the frames of a clip, of a list of frames, or of a picture, which is one."""
    if isinstance(clip, Clip):
        return list(clip.frames)
    return list(clip) if isinstance(clip, list | tuple) else [clip]


def clips_of(value: Clips) -> Sequence[list[Image.Image]]:
    """Return the frames of each clip of one or several."""
    if isinstance(value, Clip) or isinstance(value[0], Image.Image):
        return [frames_of(value)]
    return [frames_of(clip) for clip in value]
