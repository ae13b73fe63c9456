"""Stage one: encode what is frozen, once for each distinct input, and keep it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dsctl_core.cache.folder import SKIPPED_FILE
from dsctl_core.cache.manifest import Manifest, Recipe, manifest_texts
from dsctl_core.cache.open_output import open_output
from dsctl_core.cache.output import CacheOutput
from dsctl_core.cache.parts import Parts
from dsctl_core.cache.shards import (
    MOST_PARTS_IN_A_SHARD,
    MOST_SHARDS,
    PARTS_IN_A_SHARD,
    Part,
    make_part,
)
from dsctl_core.cache.verify import is_finite
from dsctl_core.data import UnifiedDataset
from dsctl_core.data.problems import kind_of_problem
from dsctl_core.errors import REQUEUE, CodeError, DsctlError, Stopped
from dsctl_core.memory.release import release_memory, weight_bytes
from dsctl_core.pipeline import BasePipeline
from dsctl_core.progress import Progress
from dsctl_core.readable import counted
from dsctl_core.remote.address import shown
from dsctl_core.stages.batching import encode_batch
from dsctl_core.stages.plan_rows import Job, Plan, plan_rows
from dsctl_core.stages.read_ahead import Work, passes_of, read_ahead
from dsctl_core.stages.sample import Sample
from dsctl_core.stages.share import Share, finishing, joined
from dsctl_core.stages.split import EncodeGroup, Stages

READERS = 2  # threads that decode pictures ahead where no number is asked for


@dataclass(frozen=True)
class Encoder:
    """Everything that stage one needs: a pipeline without components, the stages, and the recipe of cache entries."""

    shell: BasePipeline
    stages: Stages
    recipe: Recipe
    load: Callable[[Sequence[str]], BasePipeline]  # returns a pipeline that has the components named


@dataclass(frozen=True)
class EncodeSettings:
    """Settings of stage one that do not change the content of an entry."""

    batch_size: int = 1
    readers: int = READERS
    skip_bad: bool = False
    prune: bool = False
    shared: bool = False  # with other commands; see dsctl_core.stages.share
    process: int = 0
    processes: int = 1
    deadline: float | None = None  # of time.monotonic(), after which a batch is the last
    wait: Callable[[], None] = lambda: None  # until all processes are here
    gather: Callable[[list[Any]], list[Any]] = lambda entries: entries  # of all processes

    def is_late(self) -> bool:
        """Return whether the time of the command is up."""
        return self.deadline is not None and time.monotonic() >= self.deadline


class EncodingStopped(Stopped):
    """Raised when the time was up before all was encoded; what was encoded is kept."""

    exit_code = REQUEUE

    def __init__(self, encoded: int) -> None:
        kept = counted(encoded, "input was encoded, which is kept", "inputs were encoded, which are kept")
        super().__init__(f"stopped by --max-hours after {kept}", hint="the same command goes on from there")


@dataclass(frozen=True)
class CacheResult:
    """The result of stage one."""

    manifest: Manifest
    encoded: int  # parts; those that were there before are not among them
    freed_bytes: int
    seconds: float
    is_main_process: bool = True  # of several processes one speaks for all


def deadline_after(hours: float | None) -> float | None:
    """Return the time.monotonic() at which a command that starts now has run for `hours`."""
    return None if hours is None else time.monotonic() + 3600 * hours


def encode_dataset(
    cache: Path, dataset: UnifiedDataset, encoder: Encoder, how: EncodeSettings, progress: Progress
) -> CacheResult:
    """Make the cache at `cache`, a folder or an address, have an entry for each row of `dataset`.

    Only what is not there yet is encoded. A shard is written as soon as it is full, so that a run that is killed goes
    on from there. Raises EncodingStopped after the deadline, when what was encoded is written.
    """
    output = open_output(cache)
    output.require_ours()
    if how.prune:
        output.refuse_to_prune()
    with output.prepared(first=how.process == 0):
        return (_encode_shared if how.shared else _encode_dataset)(output, dataset, encoder, how, progress)


def _encode_dataset(
    output: CacheOutput, dataset: UnifiedDataset, encoder: Encoder, how: EncodeSettings, progress: Progress
) -> CacheResult:
    began = time.perf_counter()
    with output.alone() if how.process == 0 else nullcontext():
        how.wait()
        plan = plan_rows(dataset, encoder.shell, encoder.stages, encoder.recipe, progress)
        _refuse_bad_rows(plan, dataset, how)
        parts = Parts(output, progress)
        how.wait()
        own = encode_missing(output, dataset, encoder, how, plan, set(parts.shards), progress)
        told = how.gather([(*own, dict(plan.bad))])
        bad = {row: error for *_, rows in told for row, error in rows.items()}
        encoded = sum(count for count, *_ in told)
        if not all(done for _, done, _ in told):
            raise EncodingStopped(encoded)
        freed = 0
        if how.process == 0:
            parts.refresh()
            freed = finish(output, plan, bad, encoder.recipe, parts, how.prune)
        how.wait()
    seconds = time.perf_counter() - began
    return CacheResult(output.manifest(), encoded, freed, seconds, how.process == 0)


def _encode_shared(
    output: CacheOutput, dataset: UnifiedDataset, encoder: Encoder, how: EncodeSettings, progress: Progress
) -> CacheResult:
    """Encode what no other worker does; each process of this command is a worker of its own."""
    began = time.perf_counter()
    plan = plan_rows(dataset, encoder.shell, encoder.stages, encoder.recipe, progress)
    _refuse_bad_rows(plan, dataset, how)
    with joined(output, plan, encoder.recipe) as worker:
        parts = Parts(output, progress)
        works = works_of(plan, encoder.stages)
        share = Share(output, worker, plan, works, set(parts.shards), progress, how.is_late)

        freed = 0

        def load(works: Sequence[Work]) -> BasePipeline:
            nonlocal freed
            release_memory(freed)  # of the models of the pass before
            pipe = encoder.load(components_of(works))
            freed = weight_bytes(pipe.components.values())
            return pipe

        def encode(pipe: BasePipeline, works: Sequence[Work]) -> int:
            return encode_pass(output, dataset, encoder.recipe, how, plan, works, pipe, progress)

        own = share.run(load, encode)
        if share.is_done():
            with finishing(output, worker):
                parts.refresh()
                finish(output, plan, dict(plan.bad), encoder.recipe, parts, prune=False)
        told = how.gather([(own, share.is_done())])
    encoded = sum(count for count, _ in told)
    if not any(done for _, done in told):
        raise EncodingStopped(encoded)
    seconds = time.perf_counter() - began
    return CacheResult(output.manifest(), encoded, 0, seconds, how.process == 0)


def works_of(plan: Plan, stages: Stages) -> list[Work]:
    """Return all jobs of `plan` by group and shard.

    A job goes into a shard by its place in the whole list, so that an interrupted run is continued with the same shards
    that it would have written, and processes need not talk to share the work.
    """
    pictures = EncodeGroup((), frozenset(), frozenset())
    works = []
    for number, group in enumerate([*stages.groups, pictures]):
        jobs = list(plan.jobs[number].values())
        size = parts_in_a_shard(len(jobs))
        shards = [jobs[start : start + size] for start in range(0, len(jobs), size)]
        works.append(Work(group, shards))
    return works


def components_of(works: Sequence[Work]) -> tuple[str, ...]:
    """Return the names of the components that `works` run."""
    return tuple(dict.fromkeys(name for work in works for name in work.group.components))


def encode_missing(
    output: CacheOutput,
    dataset: UnifiedDataset,
    encoder: Encoder,
    how: EncodeSettings,
    plan: Plan,
    present: set[str],
    progress: Progress,
) -> tuple[int, bool]:
    """Encode this process's share of the jobs that are not `present`, group by group, until the deadline.

    Return how many jobs were done, and whether these are all.
    """
    works = []
    for work in works_of(plan, encoder.stages):
        missing = [
            [job for job in shard if job.key not in present] for shard in work.shards[how.process :: how.processes]
        ]
        works.append(Work(work.group, [shard for shard in missing if shard]))
    total = sum(len(shard) for work in works for shard in work.shards)
    if not total:
        return 0, True
    progress.start("Encoding", total, unit="input")
    done = 0
    for together in passes_of([work for work in works if work.shards]):
        if done and how.is_late():
            break
        pipe = encoder.load(components_of(together))
        done += encode_pass(output, dataset, encoder.recipe, how, plan, together, pipe, progress)
        freed = weight_bytes(pipe.components.values())
        del pipe
        release_memory(freed)  # before the models of the next group, or of training, are loaded
    progress.finish()
    return done, done == total


def encode_pass(
    output: CacheOutput,
    dataset: UnifiedDataset,
    recipe: Recipe,
    how: EncodeSettings,
    plan: Plan,
    works: Sequence[Work],
    pipe: BasePipeline,
    progress: Progress,
) -> int:
    """Encode the jobs of `works` together with `pipe`, each shard written when the last of its jobs is done.

    Return how many jobs were done: all, or those until the deadline, whose shards are then written as they are.
    """
    done = 0
    dtype = getattr(torch, recipe.dtype)
    left = {(id(work), number): len(shard) for work in works for number, shard in enumerate(work.shards)}
    parts: dict[tuple[int, int], dict[str, Part]] = {}

    def skip(job: Job, error: DsctlError) -> None:
        _stop_or_skip(plan, job, error, how)

    ahead = read_ahead(
        dataset, pipe, recipe.task, recipe.extra_inputs, works, how.batch_size, how.readers, on_error=skip
    )
    for batch in ahead:  # the readers end with the loop
        shard = (id(batch.work), batch.shard)
        made = encode_each(pipe, batch.work.group, batch.samples) if batch.jobs else []
        for job, values in zip(batch.jobs, made, strict=True):
            try:
                found = _required(values, dataset, job)
                _require_finite(found, dataset, job)
            except DsctlError as error:
                skip(job, error)
                continue
            parts.setdefault(shard, {})[job.key] = make_part(found, dtype)
        left[shard] -= batch.count
        progress.advance(batch.count)
        done += batch.count
        if not left[shard] and shard in parts:
            output.write(parts.pop(shard))
        if how.is_late():
            break
    for begun in parts.values():
        output.write(begun)
    output.flush()
    return done


def parts_in_a_shard(jobs: int) -> int:
    """Return how many parts a shard has: more where there are many, so that their number grows as a root does.

    It depends on the number of jobs alone, so that every process and every later run divides them alike.
    """
    size = PARTS_IN_A_SHARD
    while size < MOST_PARTS_IN_A_SHARD and jobs > size * MOST_SHARDS:
        size *= 2
    return size


def encode_each(pipe: BasePipeline, group: EncodeGroup, samples: list[Sample]) -> list[Sample | DsctlError]:
    """Run a group on its inputs, of one batch; where that fails one by one, to find which of them it is."""
    try:
        return [*encode_batch(pipe, group, samples)]
    except DsctlError as error:
        if len(samples) == 1:
            return [error]
        return [made for sample in samples for made in encode_each(pipe, group, [sample])]


def _required(made: Sample | DsctlError, dataset: UnifiedDataset, job: Job) -> Sample:
    if isinstance(made, DsctlError):
        kind = CodeError if isinstance(made, CodeError) else DsctlError
        raise kind(f"{dataset.location(job.row)}: {made.problem}", hint=made.hint) from made
    return made


def _require_finite(values: Sample, dataset: UnifiedDataset, job: Job) -> None:
    for name, value in values.items():
        if not is_finite(value):
            raise DsctlError(
                f"{dataset.location(job.row)}: its {name.partition('.')[2]} is not finite",
                hint="check that row's picture or clip, and its prompt; with float16, use another --mixed-precision",
            )


def _stop_or_skip(plan: Plan, job: Job, error: DsctlError, how: EncodeSettings) -> None:
    if isinstance(error, CodeError):
        raise error
    if not how.skip_bad:
        raise DsctlError(error.problem, hint=f"{error.hint}; or go on without it: --on-bad-sample skip") from error
    for row in job.rows:
        plan.drop(row, error)


def _refuse_bad_rows(plan: Plan, dataset: UnifiedDataset, how: EncodeSettings) -> None:
    if how.skip_bad or not plan.bad:
        return
    row, first = next(iter(sorted(plan.bad.items())))
    more = f" (and {len(plan.bad) - 1} more rows)" if len(plan.bad) > 1 else ""
    where = dataset.location(row)
    problem = first.problem if where in first.problem else f"{where}: {first.problem}"
    raise DsctlError(f"{problem}{more}", hint=f"{first.hint}; or go on without: --on-bad-sample skip") from first


def finish(
    output: CacheOutput, plan: Plan, bad: dict[int, DsctlError], recipe: Recipe, parts: Parts, prune: bool
) -> int:
    """Write manifest and index for what is there now; with `prune`, then remove what no entry uses.

    Return the number of bytes that were freed.
    """
    entries = [entry for entry in plan.entries if entry.row not in bad]
    skipped = [
        {"row": row, "problem": error.problem, "hint": error.hint, "kind": kind_of_problem(error)}
        for row, error in sorted(bad.items(), key=lambda item: item[0])
    ]
    output.write_skipped("".join(f"{json.dumps(each)}\n" for each in skipped))
    if not entries:
        raise DsctlError("no row of the dataset could be used", hint=f"see {shown(output.path / SKIPPED_FILE)}")
    before = output.sizes()
    used = {key for entry in entries for key in entry.parts}
    unused = parts.narrow(used) if prune else set()
    names = {key: parts.shards[key] for key in used}
    tensors = dict(output.tensor_bytes(sorted(set(names.values()))))
    total = sum(tensors[name].get(key, 0) for key, name in names.items())  # a part can be without tensors
    sizes = output.sizes()
    output.write_manifest(
        *manifest_texts(recipe, entries, names, {name: sizes[name] for name in tensors}, total, skipped)
    )
    if not prune:
        return 0
    output.remove(unused, parts.named)
    return sum(before.values()) - sum(output.sizes().values())
