"""Show the progress of a long job: a bar on a terminal, lines at intervals in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dsctl.printable import printable
from dsctl_core.readable import readable_duration

if TYPE_CHECKING:
    import rich.progress

EVERY = 5.0  # the least seconds between two lines
GAP = "  "
LEAST_BAR, MOST_BAR = 10, 40  # cells of the bar
# What a narrow terminal goes without, in this order: values (None: all but the loss), then the bar, pace and loss.
DROPPED = ("peak memory", "lr", "samples/s", None, "bar", "pace", "loss")


@dataclass
class Job:
    """The state of a job: how much of it is done, at which pace, and the values to show.

    Units that were `done_before` do not count for the pace.
    """

    what: str
    total: int | None
    unit: str
    done: int = 0
    done_before: int = 0
    seconds: float = 0.0
    values: dict[str, str] = field(default_factory=dict)

    @property
    def count(self) -> str:
        """How many units are done, "120/200"."""
        return f"{self.done}/{self.total}" if self.total else f"{self.done}"

    @property
    def pace(self) -> str:
        """The seconds that a step takes, or how many of another unit are done in a second."""
        each = self.seconds / max(self.done - self.done_before, 1)
        if self.unit == "step":
            return f"{each:.3g} s/step"
        return f"{1 / each if each else 0:.3g} {self.unit}s/s"

    @property
    def left(self) -> str:
        """The time left, "0:35 left"; empty for a job of unknown length."""
        if self.total is None:
            return ""
        each = self.seconds / max(self.done - self.done_before, 1)
        return f"{readable_duration(each * (self.total - self.done))} left"

    def advance(self, n: int, seconds: float, fields: dict[str, float | str]) -> None:
        """Count `n` units more after `seconds`, with new values if there are any."""
        self.done, self.seconds = self.done + n, seconds
        self.values = format_fields(fields) or self.values


def format_fields(fields: dict[str, float | str]) -> dict[str, str]:
    """Return values as text by name, such as {"loss": "loss 0.123"}."""
    texts = {name: value if isinstance(value, str) else f"{value:.4g}" for name, value in fields.items()}
    return {name: printable(f"{name} {text}") for name, text in texts.items()}


def job_line(job: Job, width: int, measure: Callable[[str], int] = len) -> list[tuple[str, str]]:
    """Return the parts of the line about `job` that fit into `width` cells, each with its kind: "bar", "pace" or "".

    The count and the time left are never dropped; the name of the job is cut off last.
    """
    parts = {"what": job.what, "bar": "━" * LEAST_BAR if job.total else "", "count": job.count}
    parts |= {**job.values, "pace": job.pace, "left": job.left}
    shown = {name: text for name, text in parts.items() if text}

    def needed() -> int:
        return sum(map(measure, shown.values())) + len(GAP) * (len(shown) - 1)

    for name in DROPPED:
        if needed() <= width:
            break
        others = [each for each in job.values if each != "loss"]
        for each in others if name is None else [name]:
            shown.pop(each, None)
    while needed() > width and len(shown["what"]) > 1:
        shown["what"] = f"{shown['what'].removesuffix('…')[:-1]}…"
    if "bar" in shown and job.total:
        cells = min(LEAST_BAR + width - needed(), MOST_BAR)
        shown["bar"] = ("━" * (cells * job.done // job.total)).ljust(cells, "╌")
    return [(text, name if name in ("bar", "pace") else "") for name, text in shown.items()]


class Lines:
    """Shows a job as plain lines: at most one every EVERY seconds, and one at its end."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.write, self.clock = write, clock
        self.job: Job | None = None

    def start(self, what: str, total: int | None, done: int = 0, unit: str = "step") -> None:
        """Begin a job of `total` units, of which `done` were done before; these do not count for its pace."""
        self.finish()
        self.job = Job(printable(what), total, unit, done, done)
        self.written_done = done
        self.started_at = self.written_at = self.clock()

    def advance(self, n: int = 1, **fields: float | str) -> None:
        """Count `n` units; write a line if the last one is old enough."""
        if self.job is None:
            return
        self.job.advance(n, self.clock() - self.started_at, fields)
        if self.clock() - self.written_at >= EVERY:
            self._write_state(self.job)

    def finish(self) -> None:
        """End the job, if there is one; write its last state unless the job took less than a second."""
        job, self.job = self.job, None
        if job is not None and job.done > self.written_done and self.clock() - self.started_at >= 1:
            job.seconds = self.clock() - self.started_at
            self._write_state(job)

    def note(self, message: str) -> None:
        """Write a line."""
        self.write(printable(message))

    def _write_state(self, job: Job) -> None:
        self.written_at, self.written_done = self.clock(), job.done
        left = job.left if job.total is not None and job.done < job.total else ""
        parts = [f"{job.what} {job.count}", *job.values.values(), job.pace, left]
        self.write(GAP.join(part for part in parts if part))


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
        console.print(printable(message), markup=False, highlight=False, emoji=False, soft_wrap=True)


class Bar(OnTerminal):
    """Shows a job as a bar with its values, its pace and the remaining time, in one line of any width."""

    def start(self, what: str, total: int | None, done: int = 0, unit: str = "step") -> None:
        """Show a bar of `total` units that starts at `done`."""
        from rich.cells import cell_len
        from rich.console import Console
        from rich.progress import Progress, ProgressColumn, Task
        from rich.text import Text

        self.finish()
        console = Console(stderr=True)
        job = self.job = Job(printable(what), total, unit, done, done)

        class Line(ProgressColumn):
            def render(self, task: Task) -> Text:
                styles = {"bar": "bar.complete", "pace": "dim", "": ""}
                parts = [(text, styles[kind]) for text, kind in job_line(job, console.width - 1, cell_len)]
                separated = [part for each in parts for part in ((GAP, ""), each)][1:]
                return Text.assemble(*separated, no_wrap=True, overflow="crop")

        self.live = Progress(Line(), console=console)
        self.live.add_task("", total=total)
        self.started_at = time.monotonic()
        self.live.start()

    def advance(self, n: int = 1, **fields: float | str) -> None:
        """Advance the bar by `n` units and show the values `fields`."""
        if self.live is not None:
            self.job.advance(n, time.monotonic() - self.started_at, fields)
