"""How a long job looks: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dsctl_core.readable import readable_duration

if TYPE_CHECKING:
    import rich.progress

EVERY = 5.0  # seconds between two lines


class Lines:
    """Reports a job as plain lines: at its start, at most one every EVERY seconds, and at its end."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.write, self.clock = write, clock
        self.what: str | None = None

    def start(self, what: str, total: int | None, done: int = 0) -> None:
        """Begin a job; what was done before counts, but took none of its time."""
        self.finish()
        self.what, self.total, self.fields = what, total, ""
        self.before = self.done = self.said_done = done
        self.began = self.said = self.clock()

    def advance(self, n: int = 1, **fields: float | str) -> None:
        """Count, and say so when it is time."""
        self.done += n
        self.fields = shown(fields) or self.fields
        if self.clock() - self.said >= EVERY:
            self._say()

    def finish(self) -> None:
        """End the job, if there is one; its last state is worth a line unless it took no time."""
        if self.what is not None and self.done > self.said_done and self.clock() - self.began >= 1:
            self._say()
        self.what = None

    def note(self, message: str) -> None:
        """Write a line."""
        self.write(message)

    def _say(self) -> None:
        self.said, self.said_done = self.clock(), self.done
        pace = (self.said - self.began) / max(self.done - self.before, 1)
        count = f"{self.done}/{self.total}" if self.total else f"{self.done}"
        parts = [f"{self.what} {count}", self.fields, f"{pace:.3g} s/step"]
        if self.total is not None and self.done < self.total:
            parts.append(f"{readable_duration(pace * (self.total - self.done))} left")
        self.write("  ".join(part for part in parts if part))


class OnTerminal:
    """What every display that draws on the terminal does: it can be taken away, and lines are written above it."""

    def __init__(self) -> None:
        self.live: rich.progress.Progress | None = None

    def finish(self) -> None:
        """Leave the bars as they stand and give the terminal back."""
        if self.live is not None:
            self.live.stop()
        self.live = None

    def note(self, message: str) -> None:
        """Write a line, above the bars if there are any."""
        from rich.console import Console

        console = Console(stderr=True) if self.live is None else self.live.console
        console.print(message, markup=False, highlight=False, soft_wrap=True)


class Bar(OnTerminal):
    """Reports a job as a bar with its values, its pace and the time that is left."""

    def start(self, what: str, total: int | None, done: int = 0) -> None:
        """Show a bar, which begins where the work was left."""
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
        self.began, self.total, self.values = time.monotonic(), total, ""
        self.before = self.done = done
        self.live.start()

    def advance(self, n: int = 1, **fields: float | str) -> None:
        """Move the bar."""
        if self.live is None:
            return
        self.done += n
        pace = (time.monotonic() - self.began) / max(self.done - self.before, 1)
        left = "" if self.total is None else f"  {readable_duration(pace * (self.total - self.done))} left"
        self.values = shown(fields) or self.values
        self.live.update(self.task, advance=n, pace=f"{pace:.3g} s/step{left}", values=self.values)


def shown(fields: dict[str, float | str]) -> str:
    """Return values as "loss 0.123  lr 0.0001"."""
    texts = {name: value if isinstance(value, str) else f"{value:.4g}" for name, value in fields.items()}
    return "  ".join(f"{name} {text}" for name, text in texts.items())
