"""Compute the averages that the progress bar of training shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsctl_core.readable import readable_bytes

if TYPE_CHECKING:
    from dsctl_core.training.output.logger import StepRecord

DECAY = 0.98  # of the displayed averages; metrics.jsonl has the value of every step


class StepFields:
    """Keeps moving averages of the loss and of the speed, in samples per second."""

    def __init__(self) -> None:
        self.steps = 0
        self.loss = self.pace = 0.0

    def __call__(self, record: StepRecord) -> dict[str, float | str]:
        """Return the fields to display after a step.

        The first steps have equal weights, as in a plain mean, so that the start is not over-weighted.
        """
        self.steps += 1
        weight = max(1 - DECAY, 1 / self.steps)
        self.loss += weight * (record.loss - self.loss)
        self.pace += weight * (record.samples_per_second - self.pace)
        return {
            "loss": self.loss,
            "lr": record.lr,
            "samples/s": self.pace,
            "peak memory": readable_bytes(record.peak_memory_bytes),
        }
