"""Define the hooks that the training loop calls, such as for samples, validation and the moving average."""

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
    """The state of a run that hooks can read. `step` counts optimizer updates, `total` is how many the run will make.

    Inside `shown_weights()` the model has the weights to save and to sample with. A hook that keeps other weights than
    those in training, such as their average, replaces it.
    """

    accelerator: Accelerator
    model: DiffusionTrainingModule  # the module as passed in; `prepared` is the same module, wrapped by accelerate
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
    """Base class of callbacks. Every process calls every method in the same order, so a method may use collectives.

    An error raised in a method stops the run.
    """

    def on_training_start(self, run: TrainingRun) -> None:
        """Run before the first step. The output folder exists; `run.step` is 0, or the step of a resumed run."""

    def on_step_end(self, run: TrainingRun, record: StepRecord) -> None:
        """Run after each step, when the weights are updated and its line of metrics is written."""

    def on_training_end(self, run: TrainingRun) -> None:
        """Run after the last step, before the final weights and the last state are written."""

    def state(self) -> Any:
        """Return what this hook needs to resume: dicts, lists, tensors, numbers and strings, or None.

        Called whenever the training state is saved. Sharded tensors are saved in pieces; `load_state` receives them
        sharded in the same way, or whole where the run goes on in one process, or the state is that of one.
        """
        return None

    def load_state(self, state: Any) -> None:
        """Restore what `state` returned, with tensors on the CPU. Called after `on_training_start` of a resumed run."""
