"""Show the progress of a long job: a bar on a terminal, lines at intervals in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dsctl_core.readable import readable_duration

if TYPE_CHECKING:
    import rich.progress

EVERY = 5.0  # the least seconds between two lines


class Lines:
    """Shows a job as plain lines: at most one every EVERY seconds, and one at its end."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.write, self.clock = write, clock
        self.what: str | None = None

    def start(self, what: str, total: int | None, done: int = 0) -> None:
        """Begin a job of `total` steps, of which `done` were done before; these do not count for its pace."""
        self.finish()
        self.what, self.total, self.fields = what, total, ""
        self.done_before = self.done = self.written_done = done
        self.started_at = self.written_at = self.clock()

    def advance(self, n: int = 1, **fields: float | str) -> None:
        """Count `n` steps; write a line if the last one is old enough."""
        self.done += n
        self.fields = format_fields(fields) or self.fields
        if self.clock() - self.written_at >= EVERY:
            self._write_state()

    def finish(self) -> None:
        """End the job, if there is one; write its last state unless the job took less than a second."""
        if self.what is not None and self.done > self.written_done and self.clock() - self.started_at >= 1:
            self._write_state()
        self.what = None

    def note(self, message: str) -> None:
        """Write a line."""
        self.write(message)

    def _write_state(self) -> None:
        self.written_at, self.written_done = self.clock(), self.done
        pace = (self.written_at - self.started_at) / max(self.done - self.done_before, 1)
        count = f"{self.done}/{self.total}" if self.total else f"{self.done}"
        parts = [f"{self.what} {count}", self.fields, f"{pace:.3g} s/step"]
        if self.total is not None and self.done < self.total:
            parts.append(f"{readable_duration(pace * (self.total - self.done))} left")
        self.write("  ".join(part for part in parts if part))


class OnTerminal:
    """The base of displays with bars: they can be removed, and lines are written above them."""

    def __init__(self) -> None:
        self.live: rich.progress.Progress | None = None

    def finish(self) -> None:
        """Stop updating the bars and release the terminal."""
        if self.live is not None:
            self.live.stop()
        self.live = None

    def note(self, message: str) -> None:
        """Write a line; above the bars, if there are any."""
        from rich.console import Console

        console = Console(stderr=True) if self.live is None else self.live.console
        console.print(message, markup=False, highlight=False, soft_wrap=True)


class Bar(OnTerminal):
    """Shows a job as a bar with its values, its pace and the remaining time."""

    def start(self, what: str, total: int | None, done: int = 0) -> None:
        """Show a bar of `total` steps that starts at `done`."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.finish()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TextColumn("{task.fields[pace]}", style="dim"),
        )
        self.live = Progress(*columns, console=Console(stderr=True))
        self.task = self.live.add_task(what, total=total, completed=done, values="", pace="")
        self.started_at, self.total, self.values = time.monotonic(), total, ""
        self.done_before = self.done = done
        self.live.start()

    def advance(self, n: int = 1, **fields: float | str) -> None:
        """Advance the bar by `n` steps and show the values `fields`."""
        if self.live is None:
            return
        self.done += n
        pace = (time.monotonic() - self.started_at) / max(self.done - self.done_before, 1)
        remaining = "" if self.total is None else f"  {readable_duration(pace * (self.total - self.done))} left"
        self.values = format_fields(fields) or self.values
        self.live.update(self.task, advance=n, pace=f"{pace:.3g} s/step{remaining}", values=self.values)


def format_fields(fields: dict[str, float | str]) -> str:
    """Return values as text, such as "loss 0.123  lr 0.0001"."""
    texts = {name: value if isinstance(value, str) else f"{value:.4g}" for name, value in fields.items()}
    return "  ".join(f"{name} {text}" for name, text in texts.items())
