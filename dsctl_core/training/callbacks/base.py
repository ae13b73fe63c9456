"""Callbacks of the training loop, such as sample images, validation and EMA."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from dsctl_core.progress import Progress
    from dsctl_core.training.model.module import DiffusionTrainingModule
    from dsctl_core.training.output.logger import ModelLogger, StepRecord


@dataclass
class TrainingRun:
    """A run as its hooks see it. `step` counts optimizer updates, `total` is how many there will be.

    Inside `shown_weights()` the model has the weights that a person would take away: a hook that keeps others than
    those in training, such as their average, sets it.
    """

    accelerator: Accelerator
    model: DiffusionTrainingModule  # as it was handed in; `prepared` is the same as accelerate wraps it
    prepared: nn.Module
    parameters: list[nn.Parameter]
    optimizer: Optimizer
    schedule: LRScheduler | None
    logger: ModelLogger
    progress: Progress
    total: int
    step: int = 0
    shown_weights: Callable[[], AbstractContextManager[None]] = nullcontext


class TrainingHook:
    """A part of a run. Every process calls every method, in one order, so that a method may talk to the others.

    An error raised here stops the run as one of its own does.
    """

    def on_training_start(self, run: TrainingRun) -> None:
        """Prepare; the output folder is claimed, and `run.step` steps are done: none, unless the run is resumed."""

    def on_step_end(self, run: TrainingRun, record: StepRecord) -> None:
        """Look at a step that is done: the weights are updated and its line of metrics is written."""

    def on_training_end(self, run: TrainingRun) -> None:
        """Finish, after the last step and before the final weights and the last state are written."""

    def state(self) -> Any:
        """Return what a resumed run needs of this hook: dicts, lists, tensors, numbers, texts. None: nothing.

        Asked for whenever the state of the run is saved. Tensors that are divided between processes are put together
        afterwards; `load_state` gets them whole.
        """
        return None

    def load_state(self, state: Any) -> None:
        """Take back what `state` returned, on the CPU; called after `on_training_start` of a resumed run."""
