"""Validate: measure the loss on held-out rows, at fixed noise and noise levels."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from itertools import groupby
from math import fsum
from typing import TYPE_CHECKING, Any

from dsctl_core.cache.reader import CACHED, CachedDataset
from dsctl_core.data import UnifiedDataset
from dsctl_core.data.several import DATASET
from dsctl_core.errors import DsctlError
from dsctl_core.random import derive_seed
from dsctl_core.report.runs import VALIDATION_LOSS
from dsctl_core.training.callbacks.base import TrainingHook
from dsctl_core.training.callbacks.eval_mode import eval_mode, in_lockstep

if TYPE_CHECKING:
    from dsctl_core.training.callbacks.base import TrainingRun
    from dsctl_core.training.callbacks.trackers import Trackers
    from dsctl_core.training.model.task_module import TaskModule

LEVELS = 8  # noise levels at which the loss of each row is measured
TIMES = 10  # validations in a run with neither --validation-every nor --save-steps
AnyDataset = UnifiedDataset | CachedDataset


def hold_out(dataset: Any, share: float) -> tuple[Any, Any]:
    """Split `dataset` into a training and a validation part; `share` in (0, 1) is held out, at least one row.

    Rows of regularization datasets are not held out. The choice depends on the row numbers in the table alone: a cache
    of it, another seed and another number of processes hold out the same rows. Several clips of one video are all held
    out, or all trained on.
    """
    # A row that an epoch has several times is one row: it is trained on, or held out.
    all_rows = [entry.row for entry in dataset.entries] if isinstance(dataset, CachedDataset) else dataset.numbers
    of_video: dict[Hashable, list[int]] = {}
    for row in dict.fromkeys(all_rows):
        if not is_regularization(dataset, row):
            of_video.setdefault(dataset.origin(row), []).append(row)
    count = max(round(share * len(of_video)), 1)
    if count >= len(of_video):
        raise DsctlError(
            f"--validation-split {share:g} of {len(of_video)} rows leaves none to train on",
            hint="give a smaller --validation-split, or more rows",
        )
    chosen = sorted(of_video.values(), key=lambda rows: derive_seed("validation", rows[0]))[:count]
    held = {row for rows in chosen for row in rows}
    return dataset.without(held), dataset.without(set(all_rows) - held).each_once()


def is_regularization(dataset: AnyDataset, row: int) -> bool:
    """Return whether a row is of a dataset for regularization, of several."""
    return bool(dataset.tables) and dataset.tables[dataset.table_of(row)].regularization


class Validation(TrainingHook):
    """Measures the loss of `dataset`, before the first step, every `every` steps, and after the last.

    Each row is measured with the same noise at LEVELS timesteps every time: the middles of equal parts of the table
    that training draws from. So the number estimates the training loss on rows that are not trained on, and is
    comparable between steps, and between runs that hold out the same rows. With several processes each measures its
    share. A row that cannot be loaded stops the run, unless `on_bad_sample` is set, which is called with the error.
    """

    def __init__(
        self,
        dataset: Any,
        every: int | None,
        batch_size: int,
        trackers: Trackers,
        on_bad_sample: Callable[[DsctlError], None] | None = None,
    ) -> None:
        self.dataset, self.every, self.batch_size, self.trackers = dataset, every, batch_size, trackers
        self.on_bad_sample = on_bad_sample
        self.measured = -1  # the last step that was measured

    def on_training_start(self, run: TrainingRun) -> None:
        """Measure the untrained model."""
        if run.step == 0:
            self._measure(run)

    def on_step_end(self, run: TrainingRun, record: Any) -> None:
        """Measure every `every` steps."""
        if run.step % (self.every or max(run.total // TIMES, 1)) == 0:
            self._measure(run)

    def on_training_end(self, run: TrainingRun) -> None:
        """Measure the trained model."""
        if self.measured != run.step:
            self._measure(run)

    def _measure(self, run: TrainingRun) -> None:
        from accelerate.utils import gather_object

        self.measured = run.step
        with eval_mode(run):
            own = self._losses(run)
        told = gather_object([own]) if run.accelerator.num_processes > 1 else [own]
        losses = [loss for losses in told for loss in losses]
        if not losses:
            raise DsctlError("no row that was held out for validation can be used", hint="see skipped.jsonl")
        mean = fsum(losses) / len(losses)
        run.logger.append(run.accelerator, {"step": run.step, VALIDATION_LOSS: mean})
        self.trackers.log({VALIDATION_LOSS: mean}, run.step)
        run.progress.note(f"Step {run.step}: validation loss {mean:.4g}")

    def _losses(self, run: TrainingRun) -> list[float]:
        """Return the mean loss of each row of this process."""
        count, processes = len(self.dataset) // self.dataset.repeat, run.accelerator.num_processes
        together = in_lockstep(run)
        end = -(-count // processes) * processes if together else count
        found = []
        for number in range(run.accelerator.process_index, end, processes):
            row = self._row(number) if number < count else None
            if row is not None:
                found.append(self._loss(run.model, row))  # type: ignore[arg-type]
            elif together and (other := self._some_row(count)) is not None:
                self._loss(run.model, other)  # type: ignore[arg-type]  # unused: processes run in lockstep
        return found

    def _row(self, number: int) -> dict[str, Any] | None:
        """Return a row, or None after calling `on_bad_sample` if it cannot be loaded."""
        try:
            return self.dataset[number]
        except DsctlError as error:
            if self.on_bad_sample is None:
                raise
            self.on_bad_sample(error)
            return None

    def _some_row(self, count: int) -> dict[str, Any] | None:
        """Return the first of `count` rows that can be loaded, or None."""
        return next((row for number in range(count) if (row := self._row(number)) is not None), None)

    def _loss(self, module: TaskModule, row: dict[str, Any]) -> float:
        """Return the mean loss of one row over the levels; a loss that draws no levels is computed once."""
        if not module.loss.draws_levels:
            return float(module([row]))
        encoded = row[CACHED] if CACHED in row else module.encode([row])[0]
        of_table = {DATASET: row[DATASET]} if DATASET in row else {}
        table = module.trained_levels()
        samples = [
            {
                "_row": row["_row"],
                "seed": derive_seed("validation", row["_row"], level),
                "_timestep": table[(2 * level + 1) * len(table) // (2 * LEVELS)],
                CACHED: encoded,
                **of_table,
            }
            for level in range(LEVELS)
        ]
        total = 0.0
        # The levels of a batch belong to one denoiser.
        for _, some in groupby(samples, lambda sample: module.pipe.denoiser_of(sample["_timestep"])):
            own = list(some)
            for first in range(0, len(own), self.batch_size):
                batch = own[first : first + self.batch_size]
                total += float(module(batch)) * len(batch)
        return total / LEVELS
