"""The training loop: draw samples, compute the loss, update, record, save."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsctl_core.data.sampler import BatchPlan
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.random import derive_seed
from dsctl_core.training.batches import Loaded, Rounds, batch_loader
from dsctl_core.training.guards import (
    names_of,
    require_finite_gradient,
    require_finite_loss,
    require_some_gradient,
)
from dsctl_core.training.hooks import TrainingHook, TrainingRun
from dsctl_core.training.logger import ModelLogger, StepRecord

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from dsctl_core.training.module import DiffusionTrainingModule

LOSS_AVERAGE = 0.98  # decay of the loss that is shown; the file has every loss as it was


@dataclass(frozen=True)
class TrainingSummary:
    """How a run ended."""

    steps: int
    final_loss: float
    files: list[Path]


def launch_training_task(
    accelerator: Accelerator,
    dataset: Any,
    model: DiffusionTrainingModule,
    model_logger: ModelLogger,
    *,
    learning_rate: float = 1e-5,
    weight_decay: float = 1e-2,
    num_epochs: int = 1,
    max_steps: int | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    save_steps: int | None = None,
    max_grad_norm: float = 1.0,
    seed: int = 0,
    buckets: Sequence[Hashable] | None = None,
    on_bad_sample: Callable[[DsctlError], None] | None = None,
    optimizer: Callable[[Sequence[Any]], Optimizer] | None = None,
    lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    hooks: Sequence[TrainingHook] = (),
    progress: Progress | None = None,
) -> TrainingSummary:
    """Train `model` on `dataset` and return how it ended.

    A step is an optimizer update, made of the accelerator's `gradient_accumulation_steps` micro-batches; its gradient
    is the mean over its samples, however they are spread over micro-batches and processes. `model` is called with a
    sample of `dataset`, or with a list of up to `batch_size` of them; a sample that is a dict gets a "seed" that
    depends on `seed`, the epoch and the sample's position alone. `max_steps`, when given, replaces `num_epochs`.
    `buckets` has, for each row of which `dataset` is a repetition, what the rows of one batch must have in common.
    Weights are saved every `save_steps` steps (None: after every epoch, unless `max_steps` is given) and at the end.
    A sample that cannot be loaded stops the run, unless `on_bad_sample` takes the error: then the next one of its
    bucket stands in for it. `optimizer` and `lr_scheduler` build others than AdamW at a constant rate. `hooks` are what
    the run does beside training, called in the order given.
    Raises DsctlError, before anything is updated with it, when a loss or a gradient is not finite, and UsageError when
    nothing trained has a gradient at the first step.
    """
    shown = progress or NoProgress()
    if len(dataset) == 0:
        raise DsctlError("the dataset is empty", hint="check the metadata file")
    parameters = model.trainable_modules()
    if not parameters:
        raise UsageError("nothing is trainable", hint="call switch_pipe_to_training_mode first")
    build = optimizer or (lambda p: torch.optim.AdamW(p, lr=learning_rate, weight_decay=weight_decay))
    built = build(parameters)
    schedule = lr_scheduler(built) if lr_scheduler is not None else None
    prepared, built = accelerator.prepare(model, built)
    accumulate = accelerator.gradient_accumulation_steps
    plan = BatchPlan(len(dataset), batch_size, seed, buckets)
    rounds = Rounds(plan, accelerator.process_index, accelerator.num_processes, accumulate)
    loader = batch_loader(dataset, rounds, seed, num_workers, replace_bad=on_bad_sample is not None)
    total = max_steps or num_epochs * math.ceil(len(rounds) / accumulate)
    run = TrainingRun(accelerator, model, prepared, parameters, built, schedule, model_logger, shown, total)
    loop = _Loop(run, dataset, rounds, loader, hooks, batch_size, max_grad_norm, on_bad_sample)
    loop.save_steps, loop.save_epochs = save_steps, save_steps is None and max_steps is None
    return loop.train()


class _Loop:
    """One run of the loop: epochs of rounds, each a micro-batch; the rounds of a step end in an update."""

    save_steps: int | None = None
    save_epochs = False

    def __init__(
        self,
        run: TrainingRun,
        dataset: Any,
        rounds: Rounds,
        loader: Iterable[list[Loaded]],
        hooks: Sequence[TrainingHook],
        batch_size: int,
        max_grad_norm: float,
        on_bad_sample: Callable[[DsctlError], None] | None,
    ) -> None:
        self.run, self.dataset, self.rounds, self.loader, self.hooks = run, dataset, rounds, loader, hooks
        self.batch_size, self.max_grad_norm, self.on_bad_sample = batch_size, max_grad_norm, on_bad_sample
        self.first_step = True  # of this process, whether or not the run began before
        self.average: float | None = None  # the loss that is shown
        self.record: StepRecord | None = None
        self.saved: Path | None = None
        self._begin_step()

    def train(self) -> TrainingSummary:
        """Do what is left of the run."""
        run = self.run
        run.logger.on_training_start(run.accelerator, run.model)
        for hook in self.hooks:
            hook.on_training_start(run)
        run.progress.start("Training", run.total)
        while run.step < run.total:
            self._epoch()
        for hook in self.hooks:
            hook.on_training_end(run)
        run.logger.on_training_end(run.accelerator, run.model, run.step)
        run.progress.finish()
        run.accelerator.wait_for_everyone()
        assert self.record is not None
        return TrainingSummary(run.step, self.record.loss, run.logger.files)

    def _epoch(self) -> None:
        """Go over the samples once, or until the run is over."""
        run = self.run
        self._begin_step()
        for number, loaded in enumerate(self.loader):
            norm = self._micro_batch(number, loaded)
            if not self.rounds.ends_step(number):
                continue
            self._end_step(number, norm)
            if run.step == run.total:
                return
            if self.save_steps is not None and run.step % self.save_steps == 0:
                self._save()
            self._begin_step()
        self.rounds.epoch += 1
        if self.save_epochs:
            self._save()

    def _begin_step(self) -> None:
        self.loss, self.names, self.began = 0.0, list[str](), time.perf_counter()

    def _micro_batch(self, number: int, loaded: list[Loaded]) -> Tensor | float | None:
        """Add the gradient of one micro-batch; with a step's last one, update, and return the gradient's norm."""
        accelerator, prepared, optimizer = self.run.accelerator, self.run.prepared, self.run.optimizer
        batch = [_sample(each, self.on_bad_sample, accelerator.device) for each in loaded]
        self.names += names_of(batch, self.dataset)
        last, weight = self.rounds.ends_step(number), self.rounds.weight(number)
        # What draws from torch's global generator, as dropout does, depends on the samples, not on what came before.
        torch.manual_seed(derive_seed(loaded[0].seed, "global"))
        # Gradients are exchanged between processes once a step, with its last micro-batch.
        accelerator.sync_gradients = last
        with nullcontext() if last else accelerator.no_sync(prepared):
            loss = prepared(batch[0] if self.batch_size == 1 else batch)
            require_finite_loss(loss, self.run.step + 1, names_of(batch, self.dataset), self.saved)
            mean = accelerator.reduce(loss.detach().float() * weight, reduction="mean")
            self.loss += float(mean) / accelerator.gradient_accumulation_steps
            accelerator.backward(loss * weight)
            norm = accelerator.clip_grad_norm_(self.run.parameters, self.max_grad_norm) if last else None
            if last:
                self._guard(norm)
            optimizer.step()
            optimizer.zero_grad()
        return norm

    def _guard(self, norm: Tensor | float | None) -> None:
        """Stop before an update with a gradient that does harm, or none."""
        require_finite_gradient(norm, self.run.step + 1, self.names, self.saved, self.run.accelerator)
        if self.first_step:
            require_some_gradient(norm, self.run.parameters)
            self.first_step = False

    def _end_step(self, number: int, norm: Tensor | float | None) -> None:
        """Record the step that round `number` has ended."""
        run = self.run
        run.step += 1
        lr = run.optimizer.param_groups[0]["lr"]
        if run.schedule is not None and not run.accelerator.optimizer_step_was_skipped:
            run.schedule.step()
        seconds = time.perf_counter() - self.began
        pace = self.rounds.step_samples(number) / seconds
        length = float("nan") if norm is None else float(norm)
        self.record = StepRecord(run.step, self.loss, lr, length, seconds, pace, peak_memory())
        run.logger.on_step_end(run.accelerator, run.model, self.record)
        for hook in self.hooks:
            hook.on_step_end(run, self.record)
        earlier = self.loss if self.average is None else self.average
        self.average = LOSS_AVERAGE * earlier + (1 - LOSS_AVERAGE) * self.loss
        run.progress.advance(1, loss=self.average, lr=lr, s_per_step=seconds)

    def _save(self) -> None:
        run = self.run
        self.saved = run.logger.save(run.accelerator, run.model, run.step)[0]


def _sample(loaded: Loaded, on_bad_sample: Callable[[DsctlError], None] | None, device: torch.device) -> Any:
    """Return what was loaded, its tensors on `device`; tell of what could not be loaded, or raise it."""
    from accelerate.utils import send_to_device

    for error in loaded.errors:
        if on_bad_sample is None:
            raise error
        on_bad_sample(error)
    if loaded.sample is None:
        raise loaded.errors[0]
    return send_to_device(loaded.sample, device)


def peak_memory() -> int:
    """Return the most bytes in use so far: on the GPU where there is one, else resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return 0
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
