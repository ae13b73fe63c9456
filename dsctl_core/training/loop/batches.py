"""Assign batches to processes, load them ahead in worker processes, and replace samples that cannot be loaded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.data import UnifiedDataset
from dsctl_core.data.dataset import ROW_SEED
from dsctl_core.data.sampler import BatchPlan
from dsctl_core.errors import DsctlError
from dsctl_core.random import derive_seed
from dsctl_core.training.loop.reading import Reading, ThreadedLoader, pin_tensors
from dsctl_core.training.loop.signals import leave_interrupts_to_the_main_process

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dsctl_core.training.state.folder import SavedState

AHEAD = 16  # batches of a process that are fetched while one is used


@dataclass
class Loaded:
    """A sample, or None if none could be loaded, and the errors of the samples that it replaces."""

    sample: Any
    seed: int  # of all random numbers for the sample
    errors: list[DsctlError] = field(default_factory=list)

    def pin_memory(self) -> Loaded:
        """Return this with its tensors in pinned memory; torch's loader calls it, too."""
        return replace(self, sample=pin_tensors(self.sample))


class MicroBatches(Sampler):
    """The batches of one process: in round k, process r of P takes batch k * P + r of the epoch.

    A step has `accumulate` rounds, the last step of an epoch maybe fewer. If the last round has no batch for a process,
    the process repeats an earlier batch with weight 0: the processes must stay in lockstep, and no sample may count
    twice. `fetch_ahead` is called with the positions of a batch and of the AHEAD batches of this process after it.
    """

    def __init__(
        self,
        plan: BatchPlan,
        process: int = 0,
        processes: int = 1,
        accumulate: int = 1,
        fetch_ahead: Callable[[Iterable[int]], None] | None = None,
    ) -> None:
        self.fetch_ahead = fetch_ahead
        self.plan, self.process, self.processes, self.accumulate = plan, process, processes, accumulate
        self.epoch = 0
        self.first = 0  # first round of the epoch to run; earlier ones are done already

    def __len__(self) -> int:
        """Return the number of rounds of an epoch."""
        return -(-len(self.plan) // self.processes)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the (epoch, position) of the samples of each batch."""
        epoch = self.epoch
        numbers = (self._batch_number(number) % len(self.plan) for number in range(self.first, len(self)))
        coming = (self.plan.batch(epoch, number) for number in numbers)
        waiting = deque(islice(coming, 1 if self.fetch_ahead is None else 1 + AHEAD))
        while waiting:
            if self.fetch_ahead is not None:
                self.fetch_ahead(chain.from_iterable(waiting))
            yield [(epoch, position) for position in waiting.popleft()]
            waiting.extend(islice(coming, 1))

    def steps(self) -> int:
        """Return the number of steps of an epoch."""
        return -(-len(self) // self.accumulate)

    def ends_step(self, number: int) -> bool:
        """Return whether the weights are updated after round `number`."""
        return (number + 1) % self.accumulate == 0 or number + 1 == len(self)

    def step_samples(self, number: int) -> int:
        """Return the number of samples, over all processes, of the step that round `number` belongs to."""
        first = number // self.accumulate * self.accumulate * self.processes
        last = min(first + self.accumulate * self.processes, len(self.plan))
        return sum(self.plan.batch_length(self.epoch, each) for each in range(first, last))

    def weight(self, number: int) -> float:
        """Return the factor for the mean loss of this process's batch that makes the step the mean over its samples.

        It accounts for the later division by `accumulate` and the averaging over processes.
        """
        batch = self._batch_number(number)
        if batch >= len(self.plan):
            return 0.0
        share = self.plan.batch_length(self.epoch, batch) / self.step_samples(number)
        return share * self.accumulate * self.processes

    def _batch_number(self, number: int) -> int:
        return number * self.processes + self.process


class _Samples(Dataset):
    """The dataset indexed by (epoch, position), on which alone the seed of a sample depends.

    Expected errors are returned as values; a worker process would turn them into a traceback.
    """

    def __init__(self, dataset: Any, plan: BatchPlan, seed: int, replace_bad: bool) -> None:
        self.dataset, self.plan, self.seed, self.replace_bad = dataset, plan, seed, replace_bad

    def __getitem__(self, place: tuple[int, int]) -> Loaded:
        epoch, position = place
        seed = derive_seed(self.seed, epoch, position)
        errors: list[DsctlError] = []
        others = self.plan.substitutes(position) if self.replace_bad else ()
        for candidate in chain((position,), others):
            try:
                sample = self._load(candidate, seed)
            except DsctlError as error:
                errors.append(error)
            else:
                seeds = {ROW_SEED: sample.get("seed"), "seed": seed} if isinstance(sample, dict) else {}
                return Loaded({**sample, **seeds} if seeds else sample, seed, errors)
        return Loaded(None, seed, errors)

    def _load(self, position: int, seed: int) -> Any:
        if isinstance(self.dataset, UnifiedDataset):
            return self.dataset.sample(position, seed)
        return self.dataset[position]


def _as_list(samples: list[Loaded]) -> list[Loaded]:
    return samples


def batch_loader(
    dataset: Any,
    rounds: MicroBatches,
    seed: int,
    reading: Reading,
    device: torch.device,
    *,
    replace_bad: bool,
) -> Iterable[list[Loaded]]:
    """Return what yields the batches of each epoch, as lists of Loaded, read as `reading` says for `device`."""
    loader = DataLoader(
        _Samples(dataset, rounds.plan, seed, replace_bad),
        batch_sampler=rounds,
        collate_fn=_as_list,
        num_workers=reading.workers,
        prefetch_factor=reading.ahead if reading.workers else None,
        pin_memory=reading.pinned and reading.workers > 0,
        persistent_workers=reading.workers > 0,
        worker_init_fn=leave_interrupts_to_the_main_process,
    )
    return ThreadedLoader(loader, reading.ahead, device) if reading.in_thread else loader


def fetch_first(dataset: Any, batch_size: int, seed: int, accelerator: Accelerator, state: SavedState | None) -> None:
    """Begin to fetch what the first samples of a run are made of, at its start or from `state` on.

    Which these are depends, for batches of several samples, on the shapes of all: then the headers are read that tell.
    """
    if not isinstance(dataset, CachedDataset):
        return
    if batch_size > 1:
        dataset.read_heads()
        return
    plan, processes = BatchPlan(len(dataset), batch_size, seed), accelerator.num_processes
    rounds = MicroBatches(plan, accelerator.process_index, processes, fetch_ahead=dataset.fetch_ahead)
    if state is not None:
        rounds.epoch = state.about["epoch"]
        rounds.first = state.about["step_in_epoch"] * state.about["settings"]["samples_per_step"] // processes
    next(iter(rounds), None)
