"""Answer Ctrl-C at once: the first stops the command in an orderly way, the second ends the process."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from dsctl import out, processes
from dsctl.errors import INTERRUPTED

SAME = 1.0  # seconds within which a launcher may pass on the signal that its processes have got from the terminal, too
STOPPING = "stopping; press Ctrl-C again to stop at once"


class Interrupts:
    """Context manager for the run of a command.

    The first SIGINT says that the command is stopping, and raises KeyboardInterrupt, at which downloads, threads and
    files are brought to an end; that may take seconds. The second ends the process without. Training has signal
    handlers of its own while it runs steps. Nothing is changed outside the main thread, where Python handles no
    signals, and where SIGINT is ignored or handled already.
    """

    def __init__(self) -> None:
        self.heard_at: float | None = None
        self.before: Any = None

    def __enter__(self) -> Interrupts:
        """Begin to listen."""
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self.before = signal.signal(signal.SIGINT, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave SIGINT to whoever had it."""
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.heard_at is None:
            self.heard_at = now
            out.note(STOPPING)
            raise KeyboardInterrupt
        if processes.launcher() is None or now - self.heard_at > SAME:
            out.end()
            os._exit(INTERRUPTED)
