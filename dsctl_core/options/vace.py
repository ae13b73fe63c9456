"""Declare options of what a clip follows: a control video, its mask and reference images, and how much they count."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from dsctl_core.options.base import Options
from dsctl_core.options.effects import Idle
from dsctl_core.options.messages import Takes
from dsctl_core.options.model_effects import NO_VACE_VIDEO

LARGEST = 10.0


@dataclass(frozen=True)
class VaceScale:
    """How much what is followed counts: one number for all blocks that follow it, or one for each."""

    form: ClassVar[str] = "NUMBER[,NUMBER...]"

    values: tuple[float, ...] = (1.0,)

    @classmethod
    def parse(cls, given: Any) -> VaceScale | None:
        """Read "0.5", "0.5,1,1", a number, or a list of numbers."""
        if given is None or isinstance(given, VaceScale):
            return given
        listed = given.split(",") if isinstance(given, str) else given if isinstance(given, list) else [given]
        return cls(tuple(_number(each) for each in listed))

    def __str__(self) -> str:
        return ",".join(f"{each:g}" for each in self.values)


def _number(given: Any) -> float:
    try:
        number = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        number = math.nan
    if not -LARGEST <= number <= LARGEST:  # also false for nan
        raise ValueError(f"{given!r} is not a number between {-LARGEST:g} and {LARGEST:g}")
    return number


class VaceOptions(Options):
    """What a clip is to follow."""

    panel: ClassVar[str] = "Control of clips"
    idle: ClassVar[tuple[Idle, ...]] = (NO_VACE_VIDEO,)

    vace_video: Path | None = Field(
        None,
        description="Clip to follow, such as poses, depth or a clip to repair: its frames at --fps, scaled like "
        "--input-image. On a VACE model.",
    )
    vace_video_mask: Path | None = Field(
        None,
        description="Clip as large as --vace-video, or a picture for all of its frames: white is made anew, black is "
        "kept.",
    )
    vace_reference_image: tuple[Path, ...] = Field(
        (),
        description="Picture of what the clip is to show, of any size. Can be given several times: their order counts.",
    )
    vace_scale: Annotated[
        VaceScale | None,
        BeforeValidator(VaceScale.parse),
        Takes("a number, or one for each vace block, separated by commas"),
    ] = Field(None, description="How much all of this counts: one number, or one for each vace block. Left out: 1.")
