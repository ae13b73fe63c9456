"""The training loop: draw samples, compute the loss, update, record, save."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.data import UnifiedDataset
from dsctl_core.data.sampler import BatchPlan
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.training.batches import Loaded, Rounds, batch_loader
from dsctl_core.training.hooks import TrainingHook, TrainingRun
from dsctl_core.training.logger import ModelLogger, StepRecord
from dsctl_core.training.sharded import gradient_norm, keeping_gradients, prepare, shard

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
    lr_scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
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
    bucket stands in for it. `optimizer` builds another than AdamW of the trained weights, `lr_scheduler` what is
    to become of its rate, of it and the number of steps. `hooks` are what the run does beside training, called in the
    order given.
    Raises DsctlError, before anything is updated with it, when a loss is not finite.
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
    plan = BatchPlan(len(dataset), batch_size, seed, buckets)
    rounds = Rounds(plan, accelerator.process_index, accelerator.num_processes, accumulate)
    loader = batch_loader(dataset, rounds, seed, num_workers, replace_bad=on_bad_sample is not None)
    total = max_steps or num_epochs * math.ceil(len(rounds) / accumulate)
    schedule = lr_scheduler(built, total) if lr_scheduler is not None else None
    prepared, built = prepare(accelerator, model, built, batch_size, max_grad_norm)
    run = TrainingRun(accelerator, model, prepared, parameters, built, schedule, model_logger, shown, total)
    model_logger.on_training_start(accelerator, model)
    for hook in hooks:
        hook.on_training_start(run)
    shown.start("Training", total)
    step, losses, average, began = 0, 0.0, None, time.perf_counter()
    record: StepRecord | None = None
    while step < total:
        for number, loaded in enumerate(loader):
            batch = [_sample(each, on_bad_sample, accelerator.device) for each in loaded]
            last, weight = rounds.ends_step(number), rounds.weight(number)
            # Gradients are exchanged between processes once a step, with its last micro-batch.
            accelerator.sync_gradients = last
            with nullcontext() if last else keeping_gradients(accelerator, prepared):
                loss = prepared(batch[0] if batch_size == 1 else batch)
                losses += _finite(accelerator, loss, step + 1, batch, dataset, weight) / accumulate
                accelerator.backward(loss * weight)
                norm = accelerator.clip_grad_norm_(parameters, max_grad_norm) if last else None
                built.step()
                built.zero_grad()
            if norm is None:
                continue
            step += 1
            lr = built.param_groups[0]["lr"]
            if schedule is not None:
                schedule.step()
            seconds = time.perf_counter() - began
            pace = rounds.step_samples(number) / seconds
            record = StepRecord(step, losses, lr, gradient_norm(norm), seconds, pace, peak_memory())
            model_logger.on_step_end(accelerator, model, record)
            run.step = step
            for hook in hooks:
                hook.on_step_end(run, record)
            average = record.loss if average is None else LOSS_AVERAGE * average + (1 - LOSS_AVERAGE) * record.loss
            shown.advance(1, loss=average, lr=lr, s_per_step=seconds)
            if step == total:
                break
            if save_steps is not None and step % save_steps == 0:
                model_logger.save(accelerator, model, step)
            losses, began = 0.0, time.perf_counter()
        rounds.epoch += 1
        if save_steps is None and max_steps is None:
            model_logger.save(accelerator, model, step)
    for hook in hooks:
        hook.on_training_end(run)
    model_logger.on_training_end(accelerator, model, step)
    shown.finish()
    accelerator.wait_for_everyone()
    assert record is not None
    return TrainingSummary(step, record.loss, model_logger.files)


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


def _finite(accelerator: Accelerator, loss: Any, step: int, batch: list[Any], dataset: Any, weight: float) -> float:
    """Return the loss times its weight, averaged over the processes; stop if this process's is not finite."""
    if not torch.isfinite(loss):
        rows = [sample["_row"] for sample in batch if isinstance(sample, dict) and "_row" in sample]
        names = [
            dataset.place(row) if isinstance(dataset, UnifiedDataset | CachedDataset) else f"row {row}" for row in rows
        ]
        where = f" on {', '.join(names)}" if names else ""
        raise DsctlError(
            f"the loss of step {step} is {float(loss.detach())}{where}; nothing was updated with it",
            hint="lower the learning rate, and check those rows",
        )
    return float(accelerator.reduce(loss.detach().float() * weight, reduction="mean"))


def peak_memory() -> int:
    """Return the most bytes in use so far: on the GPU where there is one, else resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return 0
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
