"""Declare what is known of the files of a dataset, and who can be asked for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol


class Identity(NamedTuple):
    """Two hashes that identify a dataset: `rows` of its rows and the sizes of the files that whole cells name.

    `files` is of what is in all files that cells name, in the order of the rows: of a large one its size and blocks
    from all over it count, so that this takes about as long as looking at the headers does.
    """

    rows: str
    files: str


@dataclass(frozen=True)
class Survey:
    """The times of all frames of a video and the end of the last one, in seconds, and its (width, height)."""

    times: Sequence[float]
    end: float
    size: tuple[int, int]


class Known(Protocol):
    """Tells what is known of pictures and clips."""

    def size(self, path: str | Path) -> tuple[int, int] | None:
        """Return the upright (width, height) of the picture at `path`; None if it has to be read for it."""

    def survey(self, path: str | Path) -> Survey | None:
        """Return the survey of the video or GIF at `path`; None if it has to be read for it."""
