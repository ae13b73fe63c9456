"""Run the training loop: load samples, compute the loss, update the weights, record, save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.data.sampler import BatchPlan, Block
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.random import derive_seed
from dsctl_core.training.callbacks.base import TrainingHook, TrainingRun
from dsctl_core.training.callbacks.progress_fields import StepFields
from dsctl_core.training.distributed.accelerator import peak_memory
from dsctl_core.training.distributed.ddp import UsedWeights, naming_unused_weights
from dsctl_core.training.distributed.fsdp import gradient_norm, keeping_gradients, prepare, shard
from dsctl_core.training.loop.batches import Loaded, MicroBatches, batch_loader
from dsctl_core.training.loop.by_dataset import LossByDataset
from dsctl_core.training.loop.finite_checks import (
    LossCheck,
    names_of,
    require_finite_gradient,
    require_some_gradient,
    require_trained_loss,
)
from dsctl_core.training.loop.reading import end_workers, plan_reading, read_alone, verify_read
from dsctl_core.training.loop.signals import STOPS, StopSignals, TrainingStopped
from dsctl_core.training.optim.lr_schedule import LRSchedule
from dsctl_core.training.output.logger import Continuation, ModelLogger, StepRecord
from dsctl_core.training.output.preflight import rehearse_save, require_space, weight_bytes
from dsctl_core.training.state.compare import refuse_changes, require_steps_left
from dsctl_core.training.state.folder import SavedState, find_state_if_any, locked
from dsctl_core.training.state.snapshot import Position, Snapshots

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from dsctl_core.training.model.module import DiffusionTrainingModule


@dataclass(frozen=True)
class TrainingSummary:
    """The result of a run."""

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
    num_workers: int | None = None,
    save_steps: int | None = None,
    max_grad_norm: float = 1.0,
    seed: int = 0,
    buckets: Sequence[Hashable] | None = None,
    blocks: Sequence[Block] | None = None,
    labels: Sequence[str] = (),
    on_bad_sample: Callable[[DsctlError], None] | None = None,
    optimizer: Callable[[Sequence[Any]], Optimizer] | None = None,
    lr_scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
    hooks: Sequence[TrainingHook] = (),
    resume: str | Path | SavedState | None = None,
    allow_changed: Sequence[str] = (),
    state_total_limit: int = 2,
    on_saved: Callable[[], None] | None = None,
    deadline: float | None = None,
    progress: Progress | None = None,
) -> TrainingSummary:
    """Train `model` on `dataset` and return how it ended.

    A step is an optimizer update over the accelerator's `gradient_accumulation_steps` micro-batches; its gradient is
    the mean over its samples, however they are spread over micro-batches and processes. A sample that is a dict gets a
    "seed" that depends on `seed`, the epoch and the sample's position alone. SIGINT, SIGTERM and the `deadline` let the
    step be finished and saved; then TrainingStopped is raised. Raises DsctlError, before the update, if a loss or a
    gradient is not finite, and UsageError if nothing that is trained has a gradient at the first step.

    Args:
        accelerator: the accelerator of the run.
        dataset: the samples, by position.
        model: called with a sample, or with a list of up to `batch_size` samples; returns the loss.
        model_logger: writes metrics and weights.
        learning_rate: the learning rate of the default optimizer, AdamW.
        weight_decay: the weight decay of the default optimizer.
        num_epochs: the number of passes over `dataset`.
        max_steps: the number of steps, which replaces `num_epochs`.
        batch_size: the most samples of a micro-batch.
        num_workers: the number of worker processes that load samples (None: see `plan_reading`).
        save_steps: save every this many steps (None: after each epoch, unless `max_steps` is set), and at the end.
        max_grad_norm: the norm to clip gradients to.
        seed: the seed of the run.
        buckets: for each row of which `dataset` is a repetition, what the rows of a batch must share.
        blocks: with `buckets`, which of these rows are repeated how often (None: all of them equally).
        labels: the names of several datasets, for the loss of each; a sample's "_dataset" is a place in them.
        on_bad_sample: called with the error of a sample that cannot be loaded, which the next one of its bucket then
            replaces; None stops the run.
        optimizer: builds the optimizer of the trained parameters.
        lr_scheduler: builds the schedule from the optimizer and the number of steps.
        hooks: callbacks, called in this order.
        resume: the training state to resume from, to the bit: "latest", or the folder of a state.
        allow_changed: settings that may differ from those of the resumed run.
        state_total_limit: the number of newest states to keep.
        on_saved: called in the main process when a save is whole on the disk, in any thread.
        deadline: the time.monotonic() after which the run is to end with a saved step.
        progress: reports progress.
    """
    shown = progress or NoProgress()
    if len(dataset) == 0:
        raise DsctlError("the dataset is empty", hint="check the metadata file")
    if not model.trainable_modules():
        raise UsageError("nothing is trainable", hint="call switch_pipe_to_training_mode first")
    shard(accelerator, model)
    parameters = model.trainable_modules()
    build = optimizer or (lambda p: torch.optim.AdamW(p, lr=learning_rate, weight_decay=weight_decay))
    built = build(parameters)
    accumulate = accelerator.gradient_accumulation_steps
    plan = BatchPlan(len(dataset), batch_size, seed, buckets, blocks)
    reading = plan_reading(num_workers, dataset, accelerator, batch_size)
    read = read_alone(dataset) if reading.in_thread else dataset
    ahead = read.fetch_ahead if isinstance(read, CachedDataset) else None
    rounds = MicroBatches(plan, accelerator.process_index, accelerator.num_processes, accumulate, ahead)
    loader = batch_loader(read, rounds, seed, reading, accelerator.device, replace_bad=on_bad_sample is not None)
    total = max_steps or num_epochs * math.ceil(len(rounds) / accumulate)
    schedule = lr_scheduler(built, total) if lr_scheduler is not None else None
    prepared, built = prepare(accelerator, model, built, batch_size, max_grad_norm)
    run = TrainingRun(accelerator, model, prepared, parameters, built, schedule, model_logger, shown, total)
    settings: dict[str, Any] = {
        "seed": seed,
        "max_grad_norm": max_grad_norm,
        "mixed_precision": accelerator.mixed_precision,
        "samples": len(dataset),
        "samples_per_step": batch_size * accumulate * accelerator.num_processes,
        "batches_of": batch_size if len(plan.groups) > 1 else None,
    }
    if optimizer is None:
        settings.update(learning_rate=learning_rate, weight_decay=weight_decay)
    settings.update((model_logger.run or {}).get("identity", {}))
    if isinstance(lr_scheduler, LRSchedule) and lr_scheduler.follows_length:
        settings["max_steps"] = total  # whether from max_steps or from num_epochs
    snapshots = Snapshots(run, hooks, state_total_limit, settings)
    if on_saved is not None:
        snapshots.on_written = on_saved
    loop = _Loop(run, dataset, rounds, loader, hooks, snapshots, batch_size, max_grad_norm, on_bad_sample)
    loop.by_dataset, loop.stop.deadline = LossByDataset(labels), deadline
    loop.verify = partial(verify_read, read, shown)
    loop.save_steps, loop.save_epochs = save_steps, save_steps is None and max_steps is None
    if isinstance(resume, str | Path):
        resume = find_state_if_any(model_logger.output_path, resume, shown.note)
    try:
        return loop.train(resume, allow_changed)
    finally:
        end_workers(loader)


class _Loop:
    """One run of the loop: epochs of rounds, each a micro-batch. The last round of a step updates the weights."""

    save_steps: int | None = None
    save_epochs = False
    by_dataset: LossByDataset
    verify: Callable[[], None]

    def __init__(
        self,
        run: TrainingRun,
        dataset: Any,
        rounds: MicroBatches,
        loader: Iterable[list[Loaded]],
        hooks: Sequence[TrainingHook],
        snapshots: Snapshots,
        batch_size: int,
        max_grad_norm: float,
        on_bad_sample: Callable[[DsctlError], None] | None,
    ) -> None:
        self.run, self.dataset, self.rounds, self.loader, self.hooks = run, dataset, rounds, loader, hooks
        self.batch_size, self.max_grad_norm, self.on_bad_sample = batch_size, max_grad_norm, on_bad_sample
        self.snapshots = snapshots
        self.used = UsedWeights(run.accelerator, run.parameters)
        self.stop = StopSignals(run.progress.note)
        self.stopped_by = 0  # one of STOPS, for one of the processes
        self.step_in_epoch = 0
        self.judged = False  # whether a gradient was seen in this process, also in a resumed run
        self.fields = StepFields()
        self.record: StepRecord | None = None
        self.saved: Path | None = None
        self._begin_step()

    def train(self, state: SavedState | None, allow_changed: Sequence[str]) -> TrainingSummary:
        """Run the remaining steps, from `state` on if there is one."""
        run = self.run
        if state is not None:
            require_steps_left(state, run.total)
            saved, where = state.about["settings"], state.folder
            changed = refuse_changes(saved, self.snapshots.settings, allow_changed, where)
            run.logger.continues = Continuation(state.output_path, state.step, changed)
        run.logger.on_training_start(run.accelerator, run.model)
        with self._alone(), self.stop, self.snapshots:
            self._start(state)
            with naming_unused_weights(self.used):
                while run.step < run.total:
                    self._epoch()
            for hook in self.hooks:
                hook.on_training_end(run)
            run.logger.on_training_end(run.accelerator, run.model, run.step)
            self.snapshots.save(self._position())
            self.snapshots.finish()
        run.progress.finish()
        self.verify()
        run.accelerator.wait_for_everyone()
        assert self.record is not None
        return TrainingSummary(run.step, self.record.loss, run.logger.files)

    def _alone(self) -> AbstractContextManager[None]:
        return locked(self.run.logger.output_path) if self.run.accelerator.is_main_process else nullcontext()

    def _start(self, state: SavedState | None) -> None:
        """Restore `state`, check that the run can be saved, and start the hooks."""
        run = self.run
        if state is not None:
            position = self.snapshots.restore(state)
            self.saved = state.folder
            per_step = state.about["settings"]["samples_per_step"] / self.snapshots.settings["samples_per_step"]
            self.rounds.epoch, self.step_in_epoch = position.epoch, int(position.step_in_epoch * per_step)
            self.rounds.first = self.step_in_epoch * run.accelerator.gradient_accumulation_steps
        run.logger.begin(run.accelerator)
        for hook in self.hooks:
            hook.on_training_start(run)
        every = self.save_steps or (self.rounds.steps() if self.save_epochs else run.total)
        rehearse_save(run, self.snapshots, saves=-(-(run.total - run.step) // every))
        if state is not None:
            self.snapshots.restore_hooks(state)
            run.progress.note(f"Going on after step {run.step}, from {state.folder}")
        if not self.snapshots.possible:
            run.progress.note("With DeepSpeed weights are saved, but no state: this run cannot be resumed")
        run.progress.start("Training", run.total, run.step)

    def _epoch(self) -> None:
        """Run the remaining rounds of an epoch, or until the run ends."""
        run = self.run
        self._begin_step()
        for number, loaded in enumerate(self.loader, self.rounds.first):
            norm = self._micro_batch(number, loaded)
            if not self.rounds.ends_step(number):
                continue
            self._end_step(number, norm)
            if run.step == run.total:
                return
            if self.stopped_by:
                self._save()
                self.snapshots.finish()
                raise TrainingStopped(self.stopped_by, run.step, run.total, resumable=self.snapshots.possible)
            if self.save_steps is not None and run.step % self.save_steps == 0:
                self._save()
            self._begin_step()
        self.rounds.epoch, self.rounds.first, self.step_in_epoch = self.rounds.epoch + 1, 0, 0
        if self.save_epochs:
            self._save()

    def _begin_step(self) -> None:
        self.loss, self.names, self.began = 0.0, list[str](), time.perf_counter()

    def _micro_batch(self, number: int, loaded: list[Loaded]) -> float | None:
        """Accumulate the gradient of a micro-batch; after a step's last one, update and return the gradient norm."""
        accelerator, prepared, optimizer = self.run.accelerator, self.run.prepared, self.run.optimizer
        batch = [_sample(each, self.on_bad_sample, accelerator.device) for each in loaded]
        names = names_of(batch, self.dataset)
        self.names += names
        last, weight = self.rounds.ends_step(number), self.rounds.weight(number)
        # Draws from torch's global generator, such as dropout's, depend on the samples, not on earlier draws.
        torch.manual_seed(derive_seed(loaded[0].seed, "global"))
        # Gradients are reduced between processes once a step, at its last micro-batch.
        accelerator.sync_gradients = last
        with nullcontext() if self.used.begins() or last else keeping_gradients(accelerator, prepared):
            loss = prepared(batch[0] if self.batch_size == 1 else batch)
            require_trained_loss(loss, self.run.step + 1)
            accelerator.backward(loss * weight)
            length = accelerator.clip_grad_norm_(self.run.parameters, self.max_grad_norm) if last else None
            norm = self._share(loss, weight, batch if weight else (), gradient_norm(length), names)
            if last:
                self._guard(norm)
            optimizer.step()
            optimizer.zero_grad()
        return norm

    def _share(
        self, loss: Tensor, weight: float, counted: Sequence[Any], norm: Tensor | None, names: list[str]
    ) -> float | None:
        """Add the mean loss of a micro-batch over all processes to the step's; return the gradient norm `norm`.

        Also learn whether a process got a signal, and add the samples `counted` to the losses of their datasets. All
        of it comes from the device at once: this is the only place where a micro-batch waits for it. Raises DsctlError
        for a loss that is not finite, on the samples `names`.
        """
        accelerator = self.run.accelerator
        own, heard = loss.detach().float(), self.stop.shares()
        sums = self.by_dataset.sums(counted, self.run.model.sample_losses, own)
        shared = accelerator.reduce(torch.cat([own[None] * weight, own.new_tensor(heard), sums]), reduction="mean")
        lengths = [] if norm is None else [norm.to(own)[None]]
        mean, *told = torch.cat([shared, own[None], *lengths]).tolist()
        signals, shares = told[: len(heard)], told[len(heard) : len(heard) + len(sums)]
        value, *length = told[len(heard) + len(sums) :]
        finite = LossCheck(value, mean, names, self.saved, resumable=self.snapshots.possible)
        finite.require(self.run.step + 1, accelerator)
        self.loss += mean / accelerator.gradient_accumulation_steps
        self.stopped_by = next((number for number, share in zip(STOPS, signals, strict=True) if share), 0)
        self.by_dataset.add(shares)
        return length[0] if length else None

    def _guard(self, norm: float | None) -> None:
        """Raise before an update with a gradient that is not finite, or with none."""
        run = self.run
        require_finite_gradient(
            norm, run.step + 1, self.names, self.saved, run.accelerator, resumable=self.snapshots.possible
        )
        self.used.require(run.step + 1)
        # Where the target is what the base predicts, a fresh LoRA has no loss, and its gradient says nothing.
        if not self.judged and self.loss:
            require_some_gradient(norm, run.parameters)
            self.judged = True

    def _end_step(self, number: int, norm: float | None) -> None:
        """Record the step that ends with round `number`."""
        self.snapshots.require_writable()
        run = self.run
        run.step += 1
        self.step_in_epoch += 1
        lr = run.optimizer.param_groups[0]["lr"]
        if run.schedule is not None and not run.accelerator.optimizer_step_was_skipped:
            run.schedule.step()
        seconds = time.perf_counter() - self.began
        pace = self.rounds.step_samples(number) / seconds
        if self.record is None and run.accelerator.is_main_process:  # from now on the optimizer has a state to measure
            require_space(run.logger.output_path, weight_bytes(run) + self.snapshots.bytes())
        length = math.nan if norm is None else norm
        losses = self.by_dataset.take()
        self.record = StepRecord(
            run.step, self.loss, lr, length, seconds, pace, peak_memory(run.accelerator.device), losses
        )
        run.logger.on_step_end(run.accelerator, run.model, self.record)
        for hook in self.hooks:
            hook.on_step_end(run, self.record)
        run.progress.advance(1, **self.fields(self.record))

    def _save(self) -> None:
        """Save the weights, then the state, so that every state has its weights beside it."""
        run = self.run
        self.saved = run.logger.save(run.accelerator, run.model, run.step)[0]
        self.snapshots.save(self._position())
        if not self.snapshots.possible and run.accelerator.is_main_process:
            self.snapshots.on_written()

    def _position(self) -> Position:
        over = self.step_in_epoch == self.rounds.steps()
        epoch, within = (self.rounds.epoch + 1, 0) if over else (self.rounds.epoch, self.step_in_epoch)
        return Position(self.run.step, epoch, within)


def _sample(loaded: Loaded, on_bad_sample: Callable[[DsctlError], None] | None, device: torch.device) -> Any:
    """Return the sample with its tensors on `device`; pass its errors to `on_bad_sample`, or raise them.

    From pinned memory a GPU copies while the host goes on.
    """
    from accelerate.utils import send_to_device

    for error in loaded.errors:
        if on_bad_sample is None:
            raise error
        on_bad_sample(error)
    if loaded.sample is None:
        raise loaded.errors[0]
    return send_to_device(loaded.sample, device, non_blocking=device.type == "cuda")
