"""Stop a run after a saved step: at the first SIGINT or SIGTERM, or when its time is up. A second signal saves nothing.

What stops a run from outside, SIGTERM or the end of its time, gives the exit code `REQUEUE` once a state is saved: a
scheduler may run the same command again.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from dsctl_core.errors import REQUEUE, Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TIME_IS_UP = -1  # among the numbers of signals
STOPS = (*SIGNALS, TIME_IS_UP)
SAME = 1.0  # seconds within which a launcher may pass on the signal that its processes have got from the terminal, too
ANEW = "begin anew from those weights, such as by --lora-checkpoint FILE, in another --output-path"


class TrainingStopped(Stopped):
    """Raised when one of `STOPS` stopped the run after a saved step. `exit_code` is `REQUEUE`, and 130 after SIGINT.

    If not `resumable`, only the weights of that step are saved, and no state; `exit_code` is 128 + the signal's number.
    """

    def __init__(self, number: int, step: int, total: int, *, resumable: bool = True) -> None:
        saved = "which is saved" if resumable else "whose weights are saved, but no state to resume from"
        what = "--max-hours" if number == TIME_IS_UP else signal.Signals(number).name
        super().__init__(
            f"stopped by {what} after step {step} of {total}, {saved}",
            hint="the same command with --resume latest goes on from there" if resumable else ANEW,
        )
        told = signal.SIGTERM if number == TIME_IS_UP else number
        self.exit_code = REQUEUE if resumable and told == signal.SIGTERM else 128 + told
        self.step = step


class StopSignals:
    """Context manager that stores the first signal in `number`, and calls `announce` with what will happen.

    A second one ends the run: SIGINT as KeyboardInterrupt, SIGTERM as SystemExit. With a launcher (RANK is set), it
    counts as the first for a second. After `deadline`, of time.monotonic(), the time of the run is up. Nothing is
    changed outside the main thread, where Python handles no signals.
    """

    def __init__(self, announce: Callable[[str], None], deadline: float | None = None) -> None:
        self.announce, self.deadline = announce, deadline
        self.number = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._heard) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None means a handler that Python did not set; it cannot be restored, so use the default.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def shares(self) -> list[float]:
        """Return for each of `STOPS` 1 if it is to stop this process, else 0."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return [*(float(self.number == number) for number in SIGNALS), float(late)]

    def _heard(self, number: int, frame: FrameType | None) -> None:
        passed_on = "RANK" in os.environ and time.monotonic() - self._since <= SAME
        if self.number and not passed_on:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)
        if not self.number:
            self.number, self._since = number, time.monotonic()
            again = "; press Ctrl-C again to stop without saving" if number == signal.SIGINT else ""
            self.announce(f"stopping after this step{again}")


def leave_interrupts_to_the_main_process(worker: int) -> None:
    """Ignore SIGINT in a worker, which the last step still needs: a terminal sends Ctrl-C to every process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
