"""The line of progress: averages that follow the run, and memory as people say it."""

import pytest

from dsctl_core.training.callbacks.progress_fields import DECAY, StepFields
from dsctl_core.training.output.logger import StepRecord


def record(step, loss, pace=2.0):
    return StepRecord(step, loss, 1e-3, 1.0, 0.5, pace, 2_500_000_000)


def test_the_first_step_is_shown_as_it_is():
    assert StepFields()(record(1, 0.7, 3.0)) == {"loss": 0.7, "lr": 1e-3, "samples/s": 3.0, "peak memory": "2.5 GB"}


def test_the_average_is_that_of_all_steps_until_the_oldest_fade():
    fields = StepFields()
    losses = [float(number % 7) for number in range(40)]
    shown = [fields(record(number, loss))["loss"] for number, loss in enumerate(losses, 1)]
    assert shown == pytest.approx([sum(losses[:n]) / n for n in range(1, 41)])


def test_after_many_steps_the_average_has_forgotten_the_first():
    fields = StepFields()
    fields(record(1, 1e6))
    for step in range(2, 2000):
        last = fields(record(step, 0.25))["loss"]
    assert last == pytest.approx(0.25, abs=1e6 * DECAY**1900)
