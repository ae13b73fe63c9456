"""Interfaces by which the library reports the progress of long jobs; the command line displays it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What a long job reports to: one `start` ... `finish` per job, `advance` in between."""

    def start(self, what: str, total: int | None, done: int = 0) -> None:
        """Begin a job of `total` units (None: not known), of which `done` were done before, in another time."""

    def advance(self, n: int = 1, **fields: float | str) -> None:
        """Say that `n` more units are done; `fields` are values to show, such as the loss."""

    def finish(self) -> None:
        """End the job."""

    def note(self, message: str) -> None:
        """Show one line that a person should see."""


class NoProgress:
    """Reports to nobody."""

    def start(self, what: str, total: int | None, done: int = 0) -> None:
        """Ignore the start of a job."""

    def advance(self, n: int = 1, **fields: float | str) -> None:
        """Ignore an advance."""

    def finish(self) -> None:
        """Ignore the end of a job."""

    def note(self, message: str) -> None:
        """Ignore a note."""


class Transfers(Protocol):
    """What a download or an upload reports to: files by name, in bytes."""

    def start(self, what: str, sizes: dict[str, int]) -> None:
        """Begin to transfer files of these sizes."""

    def advance(self, name: str, n: int) -> None:
        """Say that `n` more bytes of a file are done; fewer than none when it had to begin again."""

    def finish(self) -> None:
        """End the transfer."""

    def note(self, message: str) -> None:
        """Show one line that a person should see."""


class NoTransfers:
    """Reports to nobody."""

    def start(self, what: str, sizes: dict[str, int]) -> None:
        """Ignore the start of a transfer."""

    def advance(self, name: str, n: int) -> None:
        """Ignore an advance."""

    def finish(self) -> None:
        """Ignore the end of a transfer."""

    def note(self, message: str) -> None:
        """Ignore a note."""
