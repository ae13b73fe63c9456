"""Control networks: which, how much each of them counts, and the pictures that they follow."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from dsctl_core.errors import UsageError
from dsctl_core.options.base import Options
from dsctl_core.options.effects import NO_CONTROLNET, Idle
from dsctl_core.options.messages import Takes
from dsctl_core.readable import counted

MODEL = "controlnet"  # the component that the first control network is; the next are controlnet_2, controlnet_3, ...
IMAGE, MASK = "control_image", "control_mask"  # the columns, and inputs, of its picture and of its mask
RANGE = re.compile(r"(.+)@([0-9.]+)-([0-9.]+)")


@dataclass(frozen=True)
class ControlNetFile:
    """A control network by its name or its weights, how much it counts, and the noise levels at which it acts.

    `start` and `end` are sigmas: 1 is noise, 0 the clean picture. `mode` is the kind of control picture, by its name or
    number, for a network that takes several.
    """

    form: ClassVar[str] = "NAME[#MODE][:SCALE][@START-END]"

    source: str
    scale: float = 1.0
    start: float = 1.0
    end: float = 0.0
    mode: str | None = None

    @classmethod
    def parse(cls, text: Any) -> ControlNetFile:
        """Read NAME, FILE or FOLDER, with #MODE, :SCALE and @START-END behind it; a path that exists is taken whole."""
        if isinstance(text, ControlNetFile):
            return text
        if isinstance(text, dict) and text.keys() == {"source", "scale", "start", "end", "mode"}:  # from run.json
            return cls(**text)
        if not isinstance(text, str) or not text.strip():
            raise ValueError("this names no control network")
        if Path(text).exists():
            return cls(text)
        found = RANGE.fullmatch(text)
        source, start, end = (text, 1.0, 0.0) if found is None else (found[1], _number(found[2]), _number(found[3]))
        if not 0 <= end <= start <= 1:
            raise ValueError(f"the range {start:g}-{end:g} does not go down from at most 1 to at least 0")
        before, colon, scale = source.rpartition(":")
        if not colon or "/" in scale or "\\" in scale or Path(source).exists():
            return cls._with_mode(source, 1.0, start, end)
        if not before:
            raise ValueError("this names no control network")
        number = _number(scale)
        if not -10 <= number <= 10:
            raise ValueError(f"the scale {scale!r} is not between -10 and 10")
        return cls._with_mode(before, number, start, end)

    @classmethod
    def _with_mode(cls, text: str, scale: float, start: float, end: float) -> ControlNetFile:
        source, mark, mode = text.rpartition("#")
        if not mark or Path(text).exists():
            return cls(text, scale, start, end)
        if not source or not mode.strip():
            raise ValueError("#MODE stands behind a name, such as union#canny")
        return cls(source, scale, start, end, mode)

    def __str__(self) -> str:
        scale = "" if self.scale == 1 else f":{self.scale:g}"
        levels = "" if (self.start, self.end) == (1, 0) else f"@{self.start:g}-{self.end:g}"
        return f"{self.source}{'' if self.mode is None else f'#{self.mode}'}{scale}{levels}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


ControlNetFiles = Annotated[
    tuple[Annotated[ControlNetFile, BeforeValidator(ControlNetFile.parse)], ...],
    Takes("NAME, FILE or FOLDER, with #MODE, :SCALE and @START-END behind it, such as edges.safetensors:0.8@1-0.3"),
]


class CacheControlOptions(Options):
    """The control networks that a cache is for."""

    panel: ClassVar[str] = "Control"

    controlnet: ControlNetFiles = Field(
        (),
        description="Control network that the cache is for, by its kind, its name or its weights: its control pictures "
        "are encoded too. Can be given several times.",
    )

    def check(self) -> None:
        """Raise a UsageError for a scale or a range, which changes nothing that is encoded."""
        for each in self.controlnet:
            if replace(each, mode=None) != ControlNetFile(each.source):
                raise UsageError(
                    f"--controlnet {each} has a scale or a range, which has no effect on a cache",
                    hint=f"give --controlnet {each.source}",
                )


class ControlOptions(Options):
    """The control network to train, and those to train with."""

    panel: ClassVar[str] = "Control"

    controlnet: ControlNetFiles = Field(
        (),
        description="Control network to train, or to train with: a kind for a new one, a name, a file or a folder; "
        "with :SCALE, how much it counts. Can be given several times; `dsctl models show` lists them.",
    )

    def check(self) -> None:
        """Raise a UsageError for a range: training draws all noise levels."""
        for each in self.controlnet:
            if (each.start, each.end) != (1, 0):
                raise UsageError(
                    f"--controlnet {each} has a range, which is for pictures: training draws all noise levels",
                    hint="leave @START-END out",
                )


class ControlUseOptions(Options):
    """The control networks that steer a picture, and what they follow."""

    panel: ClassVar[str] = "Control"
    idle: ClassVar[tuple[Idle, ...]] = (NO_CONTROLNET,)

    controlnet: ControlNetFiles = Field(
        (),
        description="Control network that steers the picture: a name, a file or a folder; with #MODE, what its picture "
        "shows, with :SCALE, how much it counts, and with @START-END, from which sigma down to which (1 is noise). Can "
        "be given several times; `dsctl models show` lists the names.",
    )
    control_image: tuple[Path, ...] = Field(
        (),
        description="Picture that a control network follows, such as its edges; once for each --controlnet, in the "
        "same order.",
    )
    control_mask: tuple[Path, ...] = Field(
        (),
        description="Picture as large as --control-image: white is painted anew. Once for each --controlnet that "
        "takes a mask, in the same order.",
    )

    def check(self) -> None:
        """Raise a UsageError for more or fewer pictures than there are control networks."""
        pictures, networks = len(self.control_image), len(self.controlnet)
        if pictures != networks:
            raise UsageError(
                f"--control-image is given {counted(pictures, 'time')} for {counted(networks, 'control network')}",
                hint="give --control-image once for each --controlnet, in the same order",
            )
