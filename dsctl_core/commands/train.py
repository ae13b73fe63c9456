"""One run of `dsctl train`, from the options to the result; and its dry run.

Both follow one plan: train = plan -> encode or open the cache -> build the module -> launch_training_task, and
the dry run = plan -> the same module on tensors without numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.data import DataError
from dsctl_core.files.atomic import unclaim
from dsctl_core.options import TrainOptions
from dsctl_core.options.training import TrainingOptions
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.stages.encode import deadline_after
from dsctl_core.training.callbacks.mirror_warnings import MirrorWarnings
from dsctl_core.training.loop.batches import fetch_first
from dsctl_core.training.loop.loop import TrainingSummary, launch_training_task
from dsctl_core.training.model.task_module import TaskModule
from dsctl_core.training.output.folder import claim
from dsctl_core.training.output.logger import ModelLogger
from dsctl_core.training.output.metadata import base_weights, describe_run, header_metadata
from dsctl_core.training.plan.cautions import cautions
from dsctl_core.training.plan.grouping import grouped_buckets
from dsctl_core.training.plan.module import build_module
from dsctl_core.training.plan.plan import TrainingPlan, plan_training
from dsctl_core.training.plan.source import Source, buckets_of

if TYPE_CHECKING:
    from dsctl_core.training.dry_run.estimate import DryRun


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. `checkpoint` is the file to take away (the first, when several components were trained)."""

    checkpoint: Path
    checkpoints: tuple[Path, ...]
    steps: int
    final_loss: float
    seconds: float
    output_path: Path
    is_main_process: bool  # of several processes one speaks for all
    skipped: int = 0  # rows that could not be used, with --on-bad-sample skip
    mirror: str | None = None  # the address that has all of it, too


def train(options: TrainOptions, progress: Progress | None = None) -> TrainResult:
    """Train as `options` say and return what came of it.

    Raises DsctlError for anything that cannot be used, and then leaves no output folder behind that was not there,
    but for a cache that was made already.
    """
    began, shown = time.perf_counter(), progress or NoProgress()
    deadline = deadline_after(options.training.max_hours)
    if options.memory.fit is not None:
        from dsctl_core.training.fit.fit import fitted

        options = fitted(options, shown)
    plan = plan_training(options, shown)
    try:
        shown = shown if plan.accelerator.is_main_process else NoProgress()
        with claimed_output(plan), mirrored(plan, shown):
            summary = run_training(plan, shown, deadline)
    finally:
        plan.accelerator.end_training()
    return TrainResult(
        checkpoint=summary.files[0],
        checkpoints=tuple(summary.files),
        steps=summary.steps,
        final_loss=summary.final_loss,
        seconds=time.perf_counter() - began,
        output_path=options.output.output_path,
        mirror=None if plan.mirror is None else plan.mirror.address,
        is_main_process=plan.accelerator.is_main_process,
        skipped=len(plan.skipped),
    )


def dry_run(options: TrainOptions, progress: Progress | None = None) -> DryRun:
    """Find out what a run would take of memory and disk. Nothing is written, downloaded or trained.

    Raises DsctlError for whatever a run would refuse before it loads weights.
    """
    from dsctl_core.training.dry_run.estimate import estimate
    from dsctl_core.training.fit.fit import card_bytes, fitted

    shown, fit = progress or NoProgress(), options.memory.fit
    plan = plan_training(fitted(options, shown), shown, offline=True)
    try:
        nodes = options.memory.dry_run_nodes or 1
        return estimate(plan, card=None if fit is None else card_bytes(fit), nodes=nodes)
    finally:
        plan.accelerator.end_training()


def run_training(plan: TrainingPlan, progress: Progress, deadline: float | None = None) -> TrainingSummary:
    """Do what `plan` says: encode or open the cache, build the module, train it, until `deadline` at the latest."""
    options, training, output = plan.options, plan.options.training, plan.options.output
    with checked_in_background(plan.source, recheck=options.data.recheck) as background:
        samples = encoded_samples(plan, progress, deadline)
        about = describe_run(options, plan.model, plan.optimizer, plan.accelerator)
        on_bad_sample = plan.skipped.add if options.data.on_bad_sample == "skip" else None
        dataset, held_out = plan.callbacks.hold_out(samples)
        background.then(partial(fetch_first, dataset, training.batch_size, training.seed, plan.accelerator, plan.state))
        for caution in cautions(plan, dataset):
            progress.note(f"Warning: {caution}")
        hooks = plan.callbacks.hooks(
            plan.accelerator, held_out, plan.components, about["options"], on_bad_sample, progress
        )
        module = build_module(plan, progress)
        logger = ModelLogger(
            output.output_path,
            output.remove_prefix_in_ckpt,
            metadata=header_metadata(options.adapter, plan.model, plan.source),
            run={**about, "identity": plan.identity},
            lora_format=options.adapter.lora_format,
            lora_dtype=options.adapter.lora_dtype,
            base_weights=base_weights(options.adapter, plan.model),
            claimed=True,  # by claimed_output; what is written by now is of this run
        )
        if plan.mirror is not None:
            hooks = [*hooks, MirrorWarnings(plan.mirror)]
        plan.skipped.start(is_main_process=plan.accelerator.is_main_process)
        background.wait()
        return launch_training_task(
            plan.accelerator,
            dataset,
            module,
            logger,
            num_epochs=training.num_epochs,
            max_steps=training.max_steps,
            batch_size=training.batch_size,
            num_workers=options.data.dataset_num_workers,
            save_steps=output.save_steps,
            max_grad_norm=training.max_grad_norm,
            seed=training.seed,
            buckets=_buckets(dataset, module, training, progress),
            blocks=dataset.mixture.blocks,
            labels=[table.label for table in dataset.tables],
            on_bad_sample=on_bad_sample,
            optimizer=plan.optimizer,
            lr_scheduler=plan.lr_schedule,
            hooks=hooks,
            resume=plan.state,
            allow_changed=output.allow_changed,
            state_total_limit=output.state_total_limit,
            on_saved=None if plan.mirror is None else plan.mirror.request,
            deadline=deadline,
            progress=progress,
        )


def _buckets(
    dataset: Source, module: TaskModule, options: TrainingOptions, progress: Progress
) -> Sequence[Hashable] | None:
    """Return for each row what the rows of its batch share; None for batches of one sample."""
    if options.batch_size == 1:
        return None
    buckets = buckets_of(dataset, module)
    if not options.group_by_prompt_length:
        return buckets
    assert isinstance(dataset, CachedDataset)
    return grouped_buckets(dataset, module, buckets, options.batch_size, progress)


@contextmanager
def claimed_output(plan: TrainingPlan) -> Iterator[None]:
    """Have the output folder for this run; where the run fails, folders that were made for it and are empty go."""
    new = plan.accelerator.is_main_process and not plan.goes_on
    made = claim(plan.options.output.output_path) if new else []
    try:
        yield
    except BaseException:
        unclaim(made)
        raise


def mirrored(plan: TrainingPlan, progress: Progress) -> AbstractContextManager[None]:
    """Copy the output folder to its mirror, if it has one, while the run goes on."""
    if plan.mirror is None or not plan.accelerator.is_main_process:
        return nullcontext()
    return plan.mirror.copying(progress.note)


def encoded_samples(plan: TrainingPlan, progress: Progress, deadline: float | None = None) -> Source:
    """Return the samples to train from: those of the cache that the plan opened or has made, else of the dataset."""
    samples = plan.source
    if plan.encoding is not None:
        plan.encoding.fill(plan.own_cache, progress, deadline)
        samples = CachedDataset(plan.own_cache, plan.options.data.dataset_repeat)
    for each in samples.manifest.skipped if isinstance(samples, CachedDataset) else ():
        plan.skipped.add(DataError(each["problem"], hint=each["hint"], kind=each["kind"]))
    return samples


class Background:
    """What is done while the model loads, one after another. `wait` waits for all, and raises the first error."""

    def __init__(self) -> None:
        self._thread, self._jobs = ThreadPoolExecutor(1), list[Future[None]]()

    def then(self, job: Callable[[], None]) -> None:
        """Do a job after those before it."""
        self._jobs.append(self._thread.submit(job))

    def wait(self) -> None:
        """Wait until all is done."""
        for job in self._jobs:
            job.result()

    def end(self) -> None:
        """Begin nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)


@contextmanager
def checked_in_background(source: Source, *, recheck: bool) -> Iterator[Background]:
    """Check a cache while the model loads.

    Of a large cache each shard is read when a sample is first taken from it; with `recheck` every byte is read here.
    """
    background = Background()
    if isinstance(source, CachedDataset):
        background.then(source.check_shards if recheck else source.check_at_start)
    try:
        yield background
    finally:
        background.end()
