"""Open the clips that a run of `dsctl infer` starts from or follows, before any weights are loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.data.frame_rule import FrameRule
from dsctl_core.data.sizes import ImageCropAndResize
from dsctl_core.data.video import frame_loader
from dsctl_core.errors import DsctlError

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]  # (width, height) in pixels
CLIPS = ("input_video", "vace_video", "vace_video_mask")  # options that name a clip


@dataclass(frozen=True)
class InputVideo:
    """The file of an option that names a clip: the rule for its frames, their (width, height), and their number."""

    name: str
    path: Path
    rule: FrameRule
    size: Size
    frames: int

    @classmethod
    def open(cls, name: str, path: Path, rule: FrameRule) -> InputVideo:
        """Read the size and the number of frames of the clip of the option `name`.

        Raises DsctlError, which names the option, for a file that is no clip, or that is too short for `rule`.
        """
        width, height, count = read_input(name, frame_loader(path, rule, None).preview, path)
        return cls(name, path, rule, (width, height), count)

    @property
    def divisions(self) -> tuple[int, int]:
        """Factor and remainder of numbers of frames."""
        return self.rule.time_division_factor, self.rule.time_division_remainder

    def load(self, fit: ImageCropAndResize) -> list[Image]:
        """Return the frames, each fitted to the size while the file is decoded."""
        return read_input(self.name, frame_loader(self.path, self.rule, fit), self.path)


def read_input(name: str, load: Callable[[Path], Any], path: Path) -> Any:
    """Return what `load` makes of the file that the option `name` gives; its errors name the option."""
    flag, what = f"--{name.replace('_', '-')}", "clip" if name in CLIPS else "picture"
    try:
        return load(path)
    except DsctlError as error:
        raise DsctlError(f"{flag}: {error.problem}", hint=f"give {flag} another {what}") from error


def require_size(mask_name: str, mask: Size, name: str, size: Size) -> None:
    """Raise DsctlError unless the mask of one option has the size of the picture or clip of another, `name`."""
    if mask != size:
        flags = [f"--{each.replace('_', '-')}" for each in (mask_name, name)]
        raise DsctlError(
            f"{flags[0]} is {mask[0]}x{mask[1]}, but {flags[1]} is {size[0]}x{size[1]}",
            hint=f"give a mask as large as the {'clip' if name in CLIPS else 'picture'}",
        )
