"""Show a download or an upload: a bar for each file and one for all on a terminal, lines at intervals in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from dsctl.printable import printable
from dsctl.progress import EVERY, OnTerminal
from dsctl_core.readable import counted, readable_bytes


class TransferLines:
    """Shows a transfer as plain lines."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.write, self.clock, self.lock = write, clock, threading.Lock()
        self.what: str | None = None

    def start(self, what: str, sizes: dict[str, int]) -> None:
        """Begin a transfer; `sizes` are the bytes of its files by name."""
        self.what, self.total, self.done = printable(what), sum(sizes.values()), 0
        self.started_at = self.written_at = self.clock()
        self.write(f"{self.what}: {counted(len(sizes), 'file')}, {readable_bytes(self.total)}")

    def advance(self, name: str, n: int) -> None:
        """Count `n` bytes of the file `name`; write a line if the last one is old enough."""
        with self.lock:
            self.done += n
            if self.clock() - self.written_at >= EVERY:
                self.written_at = self.clock()
                pace = self.done / max(self.written_at - self.started_at, 1e-9)
                done, total = readable_bytes(self.done), readable_bytes(self.total)
                self.write(f"{self.what}: {done} of {total}, {readable_bytes(pace)}/s  {printable(name)}")

    def finish(self) -> None:
        """End the transfer."""
        self.what = None

    def note(self, message: str) -> None:
        """Write a line."""
        self.write(printable(message))


NUMBERS, MOST_NAME = 42, 40  # cells of bytes, speed and time left, with the gaps; and of a name, at most


class TransferBars(OnTerminal):
    """Shows a transfer as bars."""

    def start(self, what: str, sizes: dict[str, int]) -> None:
        """Show a bar for all files; each file gets its own bar when its first bytes are transferred."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        console = Console(stderr=True)
        bar = min(max(console.width - NUMBERS - MOST_NAME, 8), 40)
        self.name_width = min(max(console.width - NUMBERS - bar, 8), MOST_NAME)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self.live = Progress(*columns, console=console)
        self.sizes, self.lock = sizes, threading.Lock()
        self.transferred: dict[str, int] = {}
        self.tasks = {"": self.live.add_task(self._named(what), total=sum(sizes.values()))}
        self.live.start()

    def advance(self, name: str, n: int) -> None:
        """Advance the bars by `n` bytes of the file `name`; the bar of a complete file is hidden."""
        if self.live is None:
            return
        with self.lock:
            if name not in self.tasks:
                self.tasks[name] = self.live.add_task(self._named(name), total=self.sizes.get(name))
            self.live.advance(self.tasks[name], n)
            self.live.advance(self.tasks[""], n)
            self.transferred[name] = self.transferred.get(name, 0) + n
            self.live.update(self.tasks[name], visible=self.transferred[name] < self.sizes.get(name, 0))

    def _named(self, name: str) -> str:
        """Return a name that fits beside its numbers: of a long path the end is shown."""
        text = printable(name)
        return text if len(text) <= self.name_width else f"…{text[-self.name_width + 1 :]}"
