"""Read what a clip is to follow, a control video, its mask and reference images, as the context of a batch.

Legend: B samples; T frames of a clip, t latent frames; H, W pixels; h, w latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.wan_vace.family import MASK, REFERENCES, VIDEO
from dsctl_core.media.clip import Clip, frames_of
from dsctl_core.media.units import check_picture
from dsctl_core.pixels import to_pixels
from dsctl_core.readable import counted

Frames = list[Image.Image]
Given = Clip | Image.Image | Sequence[Any] | None  # one for all samples, or a list with one or None per sample

ROUNDED_TO = 8  # diffusers' image processor brings the sides of a reference image to multiples of this
WHITE = 1.0
SHOWN = 0.5  # a value of the mask above this is one that the reactive part of the control video has


@dataclass(frozen=True)
class Followed:
    """What one sample follows: frames of the control video, of its mask, and reference images in their order."""

    video: Frames | None
    mask: Frames | None
    references: Frames


def followed(video: Given, mask: Given, references: Given) -> list[Followed]:
    """Return what each sample follows; a single one if all samples follow the same.

    Raises UsageError for inputs of different numbers of samples.
    """
    given: dict[str, Sequence[Any]] = {VIDEO: _clips(video), MASK: _clips(mask), REFERENCES: _stacks(references)}
    count = max(len(each) for each in given.values())
    for name, each in given.items():
        if len(each) not in (1, count):
            raise UsageError(
                f"{len(each)} samples have a {name}, and {count} another input",
                hint="give one for all samples, or one for each",
            )
    return [Followed(*(each[min(number, len(each) - 1)] for each in given.values())) for number in range(count)]


def check_followed(samples: Sequence[Followed], height: int, width: int, num_frames: int) -> None:
    """Raise an error for what does not fit clips of `num_frames` frames of `height` x `width` pixels.

    It looks at numbers and sizes alone, not at pixels.
    """
    for sample in samples:
        if sample.mask is not None and sample.video is None:
            raise UsageError(
                f"{MASK} is given without {VIDEO}", hint=f"give the {VIDEO} that it is for, or leave it out"
            )
        for name, frames in ((VIDEO, sample.video), (MASK, sample.mask)):
            for frame in frames or ():
                check_picture(name, frame, height, width)
            if frames is not None and len(frames) != num_frames and not (name == MASK and len(frames) == 1):
                still = ", or one picture for all of them" if name == MASK else ""
                raise UsageError(
                    f"the {name} has {counted(len(frames), 'frame')}, but the clip has {num_frames}",
                    hint=f"give it as many frames{still}",
                )
        for picture in sample.references:
            _fitted_sides(picture.size, height, width)
    numbers = sorted({len(sample.references) for sample in samples})
    if len(numbers) > 1:
        raise DsctlError(
            f"one batch has samples with {numbers[0]} and with {numbers[1]} reference images",
            hint="give every row the same number, or a batch size of 1",
        )


def mask_frames(mask: Frames | None, num_frames: int, height: int, width: int) -> Tensor:
    """Return a mask as (T, H, W) float32 in [0, 1], white 1; all of it is 1 without a mask."""
    if mask is None:
        return torch.ones(num_frames, height, width)
    levels = [torch.from_numpy(np.array(frame.convert("L"), dtype=np.float32) / 255) for frame in mask]
    return torch.stack(levels).expand(num_frames, -1, -1)


def mask_levels(mask: Tensor, latent_frames: int, scale: int) -> Tensor:
    """Return a mask (T, H, W) as (`scale` * `scale`, t, h, w) uint8, 255 for 1: the pixels of each latent as channels.

    Of the frames of a latent frame it has one, the nearest to their middle.
    """
    frames, height, width = mask.shape
    cells = mask.view(frames, height // scale, scale, width // scale, scale).permute(2, 4, 0, 1, 3).flatten(0, 1)
    size = (latent_frames, height // scale, width // scale)
    return (interpolate(cells[None], size=size, mode="nearest-exact")[0] * 255).round().to(torch.uint8)


def on_white(picture: Image.Image, height: int, width: int) -> Tensor:
    """Return a picture as (1, 3, H, W) in [-1, 1], scaled to fit and centred on white.

    As diffusers' WanVACEPipeline does it: sides are brought to multiples of 8, then scaled bilinearly.
    """
    down, across = _fitted_sides(picture.size, height, width)
    rounded = tuple(side // ROUNDED_TO * ROUNDED_TO for side in picture.size)
    pixels = to_pixels(picture)
    if rounded != picture.size:
        pixels = to_pixels(picture.resize((rounded[0], rounded[1]), Image.Resampling.LANCZOS))
    canvas = torch.full((1, 3, height, width), WHITE)
    top, left = (height - down) // 2, (width - across) // 2
    scaled = interpolate(pixels, size=(down, across), mode="bilinear", align_corners=False)
    canvas[:, :, top : top + down, left : left + across] = scaled
    return canvas


def _fitted_sides(size: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) of a reference image of (width, height) `size` inside of `height` x `width`.

    Raises UsageError for one that is too small or too narrow to be seen there.
    """
    across, down = (side // ROUNDED_TO * ROUNDED_TO for side in size)
    if min(across, down) > 0:
        scale = min(height / down, width / across)
        fitted = (int(down * scale), int(across * scale))
        if min(fitted) > 0:
            return fitted
    raise UsageError(
        f"a {REFERENCES} is {size[0]}x{size[1]} pixels, too small or too narrow to fit {width}x{height}",
        hint="give a larger or a less narrow picture",
    )


def _clips(value: Given) -> list[Frames | None]:
    """Return the frames of a clip for all samples, or of each sample's; None for none."""
    if isinstance(value, list | tuple) and not all(isinstance(each, Image.Image) for each in value):
        return [None if each is None else _checked(frames_of(each)) for each in value]
    return [None if value is None else _checked(frames_of(value))]


def _stacks(value: Given) -> list[Frames]:
    """Return the pictures for all samples, or those of each sample, none of them for None."""
    return [frames or [] for frames in _clips(value)]


def _checked(frames: Frames) -> Frames:
    for each in frames:
        if not isinstance(each, Image.Image):
            raise DsctlError(
                f"what is to be followed is {each!r}, not pictures", hint="name its column in --data-file-keys too"
            )
    return frames
