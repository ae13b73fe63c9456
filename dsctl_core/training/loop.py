"""The training loop: draw samples, compute the loss, update, record, save."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.data import UnifiedDataset
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.random import derive_seed
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


class _Numbered(Dataset):
    """A dataset that says each sample's position too: what is random about a sample depends on it.

    An error that a person should read is handed over as it is; a worker process would turn it into a traceback.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> tuple[int, Any]:
        try:
            return position, self.dataset[position]
        except DsctlError as error:
            return position, error


class _EpochOrder(Sampler):
    """A shuffle that is a pure function of the seed and the epoch."""

    def __init__(self, dataset: Sized, seed: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.epoch))
        return iter(torch.randperm(len(self.dataset), generator=generator).tolist())


def _as_list(samples: list[Any]) -> list[Any]:
    return samples


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
    optimizer: Callable[[Sequence[Any]], Optimizer] | None = None,
    lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    progress: Progress | None = None,
) -> TrainingSummary:
    """Train `model` on `dataset` and return how it ended.

    A step is an optimizer update, made of the accelerator's `gradient_accumulation_steps` micro-batches. `model` is
    called with a sample of `dataset`, or with a list of `batch_size` of them; a sample that is a dict gets a "seed"
    that depends on `seed`, the epoch and the sample's position alone. `max_steps`, when given, replaces `num_epochs`.
    Weights are saved every `save_steps` steps (None: after every epoch, unless `max_steps` is given) and at the end.
    `optimizer` and `lr_scheduler` build others than AdamW at a constant rate.
    Raises DsctlError, before anything is updated with it, when a loss is not finite.
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
    order = _EpochOrder(dataset, seed)
    loader: Any = DataLoader(
        _Numbered(dataset),
        batch_size=batch_size,
        sampler=order,
        collate_fn=_as_list,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )
    prepared, built, loader = accelerator.prepare(model, built, loader)
    total = max_steps or num_epochs * math.ceil(len(loader) / accelerator.gradient_accumulation_steps)
    model_logger.on_training_start(accelerator, model)
    shown.start("Training", total)
    step, losses, average, began, samples = 0, [], None, time.perf_counter(), 0
    record: StepRecord | None = None
    while step < total:
        for numbered in loader:
            batch = [_ready(sample, derive_seed(seed, order.epoch, position)) for position, sample in numbered]
            with accelerator.accumulate(prepared):
                loss = prepared(batch[0] if batch_size == 1 else batch)
                losses.append(_finite(accelerator, loss, step + 1, batch, dataset))
                samples += len(batch) * accelerator.num_processes
                accelerator.backward(loss)
                norm = accelerator.clip_grad_norm_(parameters, max_grad_norm) if accelerator.sync_gradients else None
                built.step()
                built.zero_grad()
            if norm is None:
                continue
            step += 1
            lr = built.param_groups[0]["lr"]
            if schedule is not None:
                schedule.step()
            seconds = time.perf_counter() - began
            record = StepRecord(
                step, sum(losses) / len(losses), lr, float(norm), seconds, samples / seconds, peak_memory()
            )
            model_logger.on_step_end(accelerator, model, record)
            average = record.loss if average is None else LOSS_AVERAGE * average + (1 - LOSS_AVERAGE) * record.loss
            shown.advance(1, loss=average, lr=lr, s_per_step=seconds)
            if step == total:
                break
            if save_steps is not None and step % save_steps == 0:
                model_logger.save(accelerator, model, step)
            losses, began, samples = [], time.perf_counter(), 0
        order.epoch += 1
        if save_steps is None and max_steps is None:
            model_logger.save(accelerator, model, step)
    model_logger.on_training_end(accelerator, model, step)
    shown.finish()
    accelerator.wait_for_everyone()
    assert record is not None
    return TrainingSummary(step, record.loss, model_logger.files)


def _ready(sample: Any, seed: int) -> Any:
    """Return a sample with its seed; raise what could not be loaded."""
    if isinstance(sample, DsctlError):
        raise sample
    return {**sample, "seed": seed} if isinstance(sample, dict) else sample


def _finite(accelerator: Accelerator, loss: Any, step: int, batch: list[Any], dataset: Any) -> float:
    """Return the loss averaged over the processes; stop the run if this process's is not finite."""
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
    return float(accelerator.reduce(loss.detach().float(), reduction="mean"))


def peak_memory() -> int:
    """Return the most bytes in use so far: on the GPU where there is one, else resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return 0
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
