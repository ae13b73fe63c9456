"""Losses: one file each, named after its task. Adding a file adds the task, and `dsctl train` offers it."""

from __future__ import annotations

import importlib

from dsctl_core.errors import unknown_name
from dsctl_core.losses.contract import Loss, loss
from dsctl_core.losses.direct_distill import DirectDistillLoss
from dsctl_core.losses.sft import FlowMatchSFTLoss
from dsctl_core.options.tasks import LOSS_TASKS

__all__ = ["LOSSES", "DirectDistillLoss", "FlowMatchSFTLoss", "Loss", "find_loss", "loss"]


def _loss_of(task: str) -> Loss:
    module = importlib.import_module(f"{__name__}.{task}")
    for value in vars(module).values():
        if isinstance(value, Loss) and value.task == task:
            return value
    raise TypeError(f"{module.__name__} has no loss of the task {task!r}")


def find_loss(task: str) -> Loss:
    """Return the loss of a task; an unknown name is a usage error with the near miss."""
    if task not in LOSSES:
        raise unknown_name("task", task, list(LOSSES))
    return LOSSES[task]


LOSSES = {name: _loss_of(name) for name in LOSS_TASKS}
