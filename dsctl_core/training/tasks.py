"""The training module behind `dsctl train`: rows -> the pipeline's units -> the loss of the task, for any family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dsctl_core.cache.reader import CACHED
from dsctl_core.errors import unknown_name
from dsctl_core.lora.dropout import dropouts_of, seed_dropout
from dsctl_core.losses import LOSSES, Loss
from dsctl_core.pipeline import BasePipeline
from dsctl_core.samples import Sample, collate, padded_outputs, pick, rounded, unpick
from dsctl_core.stages import PER_STEP_INPUTS, plan_stages, run
from dsctl_core.training.module import DiffusionTrainingModule


def find_loss(task: str) -> Loss:
    """Return the loss of a task; an unknown name is a usage error with the near miss."""
    if task not in LOSSES:
        raise unknown_name("task", task, list(LOSSES))
    return LOSSES[task]


class TaskModule(DiffusionTrainingModule):
    """Trains any family on any task: what differs between them is in the pipeline and in the loss.

    A sample comes from a cache, or is encoded here, by the same units in the same way: the numbers are the same.
    """

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
        self.stages = plan_stages(pipe, self.loss, [component.name for component in self.trained])
        self.padded = padded_outputs(pipe.units)
        self.dropouts = dropouts_of(pipe)

    def forward(self, data: dict[str, Any] | list[dict[str, Any]]) -> Tensor:
        """Return the mean loss over a row, or over a list of rows of one size."""
        rows = data if isinstance(data, list) else [data]
        samples = [row[CACHED] if CACHED in row else self.encode(row) for row in rows]
        shared, posi, nega = unpick(collate(samples, self.padded))
        drawn = {name: [row.get(name) for row in rows] for name in PER_STEP_INPUTS}
        shared = {**self._placed(shared), **drawn, **self.run_time_inputs}
        seed_dropout(self.dropouts, drawn["seed"])
        shared, posi, nega = run(self.stages.split.every_step, self.pipe, (shared, self._placed(posi), nega))
        return self.loss(self.pipe, **shared, **posi)

    def encode(self, row: dict[str, Any]) -> Sample:
        """Return what the first stage makes of one row: each alone, so that it does not depend on its batch."""
        sides = self.pipe.inputs_from_rows([row], self.extra_inputs)
        # As in inference and as for a cache: in the precision of the weights, whatever the training's is.
        with torch.no_grad(), torch.autocast(self.pipe.device.type, enabled=False):
            sides = run(self.stages.split.once, self.pipe, sides)
        return rounded(pick(sides, self.stages.needs), self.pipe.torch_dtype)

    def _placed(self, values: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value.to(self.pipe.device) if isinstance(value, Tensor) else value for name, value in values.items()
        }
