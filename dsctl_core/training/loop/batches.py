"""Batches on their way to the model: which of them are whose, read ahead by worker processes, bad ones replaced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from dsctl_core.data import UnifiedDataset
from dsctl_core.data.dataset import ROW_SEED
from dsctl_core.data.sampler import BatchPlan
from dsctl_core.errors import DsctlError
from dsctl_core.random import derive_seed
from dsctl_core.training.loop.signals import leave_interrupts_to_the_main_process


@dataclass
class Loaded:
    """A sample, or None where none could be loaded, and the errors of those that it stands in for."""

    sample: Any
    seed: int  # of everything random about it
    errors: list[DsctlError] = field(default_factory=list)


class MicroBatches(Sampler):
    """The batches of one process: in round k, process r of P takes batch k * P + r of the epoch.

    A step is `accumulate` rounds, the last of an epoch maybe fewer. Where the last round has no batch for a process,
    it takes one that was had already, with weight 0: the processes must stay in step, and nothing may count twice.
    """

    def __init__(self, plan: BatchPlan, process: int = 0, processes: int = 1, accumulate: int = 1) -> None:
        self.plan, self.process, self.processes, self.accumulate = plan, process, processes, accumulate
        self.epoch = 0
        self.first = 0  # round to begin the epoch with: those before it were done earlier

    def __len__(self) -> int:
        """Return how many rounds an epoch has."""
        return -(-len(self.plan) // self.processes)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the (epoch, position) of the samples of each batch."""
        epoch = self.epoch
        for number in range(self.first, len(self)):
            batch = self.plan.batch(epoch, self._batch_number(number) % len(self.plan))
            yield [(epoch, position) for position in batch]

    def steps(self) -> int:
        """Return how many steps an epoch has."""
        return -(-len(self) // self.accumulate)

    def ends_step(self, number: int) -> bool:
        """Return whether the weights are updated after round `number`."""
        return (number + 1) % self.accumulate == 0 or number + 1 == len(self)

    def step_samples(self, number: int) -> int:
        """Return how many samples all processes together have in the step that round `number` is of."""
        first = number // self.accumulate * self.accumulate * self.processes
        last = min(first + self.accumulate * self.processes, len(self.plan))
        return sum(self.plan.batch_length(self.epoch, each) for each in range(first, last))

    def weight(self, number: int) -> float:
        """Return what the mean loss of this process's batch counts, for the step to be the mean over its samples.

        What is done to a loss later on, dividing by `accumulate` and averaging over the processes, is in it.
        """
        batch = self._batch_number(number)
        if batch >= len(self.plan):
            return 0.0
        share = self.plan.batch_length(self.epoch, batch) / self.step_samples(number)
        return share * self.accumulate * self.processes

    def _batch_number(self, number: int) -> int:
        return number * self.processes + self.process


class _Samples(Dataset):
    """The dataset by (epoch, position): what is random about a sample depends on these alone.

    Errors that a person should read are handed over as they are; a worker process would turn them into a traceback.
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


def batch_loader(dataset: Any, rounds: MicroBatches, seed: int, num_workers: int, *, replace_bad: bool) -> DataLoader:
    """Return the batches of each epoch in turn, as lists of Loaded, read ahead by `num_workers` processes."""
    return DataLoader(
        _Samples(dataset, rounds.plan, seed, replace_bad),
        batch_sampler=rounds,
        collate_fn=_as_list,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=leave_interrupts_to_the_main_process,
    )
