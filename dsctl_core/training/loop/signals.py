"""Handle SIGINT and SIGTERM: the first lets the step be finished and saved, the second ends the process at once."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

from dsctl_core.errors import DsctlError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME = 1.0  # seconds within which a second signal counts as the first, which a launcher may pass on again
ANEW = "begin anew from those weights, such as by --lora-checkpoint FILE, in another --output-path"


class TrainingStopped(DsctlError):
    """Raised when a signal stopped the run after a saved step. `exit_code` is 128 + the signal's number.

    If not `resumable`, only the weights of that step are saved, and no state.
    """

    def __init__(self, number: int, step: int, total: int, *, resumable: bool = True) -> None:
        saved = "which is saved" if resumable else "whose weights are saved, but no state to resume from"
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step} of {total}, {saved}",
            hint="the same command with --resume latest goes on from there" if resumable else ANEW,
        )
        self.exit_code = 128 + number
        self.step = step


class StopSignals:
    """Context manager that stores the first signal in `number` instead of letting it end the process.

    A second one, more than a second later, ends the process: SIGINT as KeyboardInterrupt, SIGTERM as SystemExit. It
    does nothing outside the main thread, where Python handles no signals.
    """

    def __init__(self) -> None:
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

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.number and time.monotonic() - self._since > SAME:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)
        if not self.number:
            self.number, self._since = number, time.monotonic()


def leave_interrupts_to_the_main_process(worker: int) -> None:
    """Ignore SIGINT in a worker, which the last step still needs: a terminal sends Ctrl-C to every process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
