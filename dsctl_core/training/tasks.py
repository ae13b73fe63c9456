"""The training module behind `dsctl train`: rows -> the pipeline's units -> the loss of the task, for any family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dsctl_core.errors import unknown_name
from dsctl_core.losses import LOSSES, Loss
from dsctl_core.pipeline import BasePipeline
from dsctl_core.training.module import DiffusionTrainingModule


def find_loss(task: str) -> Loss:
    """Return the loss of a task; an unknown name is a usage error with the near miss."""
    if task not in LOSSES:
        raise unknown_name("task", task, list(LOSSES))
    return LOSSES[task]


class TaskModule(DiffusionTrainingModule):
    """Trains any family on any task: what differs between them is in the pipeline and in the loss."""

    def __init__(
        self,
        pipe: BasePipeline,
        task: str,
        *,
        extra_inputs: Sequence[str] = (),
        use_gradient_checkpointing: bool = False,
        use_gradient_checkpointing_offload: bool = False,
        **training_mode: Any,
    ) -> None:
        """Take over `pipe`; `training_mode` goes to `switch_pipe_to_training_mode`."""
        super().__init__()
        self.pipe = pipe
        self.loss = find_loss(task)
        self.extra_inputs = tuple(extra_inputs)
        self.run_time_inputs = {
            "use_gradient_checkpointing": use_gradient_checkpointing,
            "use_gradient_checkpointing_offload": use_gradient_checkpointing_offload,
        }
        self.switch_pipe_to_training_mode(pipe, **training_mode)

    def forward(self, data: dict[str, Any] | list[dict[str, Any]]) -> Tensor:
        """Return the mean loss over a row, or over a list of rows of one size."""
        rows = data if isinstance(data, list) else [data]
        shared, posi, nega = self.pipe.inputs_from_rows(rows, self.extra_inputs)
        shared = {**shared, **self.run_time_inputs}
        for unit in self.pipe.units:
            shared, posi, nega = self.pipe.unit_runner(unit, self.pipe, shared, posi, nega)
        return self.loss(self.pipe, **shared, **posi)
