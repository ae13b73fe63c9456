"""Interfaces by which the library reports the progress of long jobs; the command line displays it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the progress of a long job: one `start` and one `finish` per job, and `advance` in between."""

    def start(self, what: str, total: int | None, done: int = 0, unit: str = "step") -> None:
        """Begin the job `what` with `total` units (None: unknown), of which `done` were completed in an earlier run.

        `unit` is what is counted, in the singular.
        """

    def advance(self, n: int = 1, **fields: float | str) -> None:
        """Report that `n` more units are done; `fields` are values to show, such as the loss."""

    def finish(self) -> None:
        """End the job."""

    def note(self, message: str) -> None:
        """Show one line that a person should see."""


class NoProgress:
    """Reports to nobody."""

    def start(self, what: str, total: int | None, done: int = 0, unit: str = "step") -> None:
        """Ignore the start of a job."""

    def advance(self, n: int = 1, **fields: float | str) -> None:
        """Ignore an advance."""

    def finish(self) -> None:
        """Ignore the end of a job."""

    def note(self, message: str) -> None:
        """Ignore a note."""


class Transfers(Protocol):
    """Receives the progress of a download or an upload: file by file, in bytes."""

    def start(self, what: str, sizes: dict[str, int]) -> None:
        """Begin the transfer `what` of files with these `sizes` in bytes, by name."""

    def advance(self, name: str, n: int) -> None:
        """Report that `n` more bytes of the file `name` are done; `n` is negative after a restart of that file."""

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
