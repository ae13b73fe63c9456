"""How a download or an upload looks: a bar for each file and one for all on a terminal, some lines in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from dsctl.progress import EVERY, OnTerminal
from dsctl_core.readable import readable_bytes


class TransferLines:
    """Reports a transfer as plain lines."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.write, self.clock, self.lock = write, clock, threading.Lock()
        self.what: str | None = None

    def start(self, what: str, sizes: dict[str, int]) -> None:
        """Say what begins."""
        self.what, self.total, self.done = what, sum(sizes.values()), 0
        self.began = self.said = self.clock()
        self.write(f"{what}: {len(sizes)} file{'s' if len(sizes) != 1 else ''}, {readable_bytes(self.total)}")

    def advance(self, name: str, n: int) -> None:
        """Count, and say so when it is time."""
        with self.lock:
            self.done += n
            if self.clock() - self.said >= EVERY:
                self.said = self.clock()
                pace = self.done / max(self.said - self.began, 1e-9)
                self.write(
                    f"{self.what}: {readable_bytes(self.done)} of {readable_bytes(self.total)}, "
                    f"{readable_bytes(pace)}/s  {name}"
                )

    def finish(self) -> None:
        """End the transfer."""
        self.what = None

    def note(self, message: str) -> None:
        """Write a line."""
        self.write(message)


class TransferBars(OnTerminal):
    """Reports a transfer as bars."""

    def start(self, what: str, sizes: dict[str, int]) -> None:
        """Show a bar for each file, the first time that something of it comes, and one for all."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self.live = Progress(*columns, console=Console(stderr=True))
        self.sizes, self.lock = sizes, threading.Lock()
        self.gone: dict[str, int] = {}
        self.tasks = {"": self.live.add_task(what, total=sum(sizes.values()))}
        self.live.start()

    def advance(self, name: str, n: int) -> None:
        """Move the bars; the bar of a file that is done goes away."""
        if self.live is None:
            return
        with self.lock:
            if name not in self.tasks:
                self.tasks[name] = self.live.add_task(name, total=self.sizes.get(name))
            self.live.advance(self.tasks[name], n)
            self.live.advance(self.tasks[""], n)
            self.gone[name] = self.gone.get(name, 0) + n
            self.live.update(self.tasks[name], visible=self.gone[name] < self.sizes.get(name, 0))
