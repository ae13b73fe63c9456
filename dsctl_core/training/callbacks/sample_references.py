"""Load the reference images of samples, from lines of a prompts file or rows of the dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.data.images import LoadImage
from dsctl_core.data.pair_checks import REFERENCES
from dsctl_core.errors import DsctlError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class References:
    """The reference images of one sample, RGB at their own size, and the files that they come from."""

    files: tuple[Path, ...]
    images: tuple[Image, ...]


def read_references(value: Any, folder: Path, source: str) -> References | None:
    """Load a path or a list of paths, relative to `folder`; return None for None and for an empty list.

    Raises a DsctlError that begins with `source` for a value of another type and for a file that cannot be read.
    """
    paths = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise DsctlError(
            f"{source}: {REFERENCES} is {value!r}", hint='write it as "a.png", or as a list such as ["a.png", "b.png"]'
        )
    return load_references([folder / path for path in paths], source)


def load_references(files: Sequence[Path], source: str) -> References | None:
    """Load `files`; return None if there are none. Raises a DsctlError that begins with `source`."""
    return References(tuple(files), tuple(load_picture(REFERENCES, file, source) for file in files)) if files else None


def load_picture(name: str, file: Path, source: str) -> Image:
    """Load the picture that `name` names; raise a DsctlError that begins with `source`, a line or a row."""
    try:
        return LoadImage()(file)
    except DsctlError as error:
        raise in_sample(error, name, source) from error


def in_sample(error: DsctlError, name: str, source: str) -> DsctlError:
    """Return an error about the file that `name` names, which begins with `source`, a line or a row."""
    return DsctlError(f"{source}, {name}: {error.problem}", hint=f"name another file there, or leave {name} out")
