"""Read the inputs of stage one ahead of encoding: each file once for all groups of units that read it, in threads."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from dsctl_core.data import UnifiedDataset
from dsctl_core.errors import DsctlError
from dsctl_core.pipeline import BasePipeline
from dsctl_core.stages.batching import batch_key_of, split_into_batches
from dsctl_core.stages.plan_rows import Job, has_pictures, inputs_of_job, read_row
from dsctl_core.stages.sample import Sample
from dsctl_core.stages.split import EncodeGroup


@dataclass(frozen=True)
class Work:
    """The jobs of a group that are to be done, by the shards that they go into."""

    group: EncodeGroup
    shards: Sequence[Sequence[Job]]

    @property
    def reads_files(self) -> bool:
        """Whether the group works on pictures or clips."""
        return any(has_pictures(job.sample) for shard in self.shards for job in shard)


@dataclass(frozen=True)
class Batch:
    """The jobs of one batch, of shard `shard` of `work`, with their inputs; those that cannot be read are left out.

    `count` is the number of jobs with them.
    """

    work: Work
    shard: int
    count: int
    jobs: list[Job]
    samples: list[Sample]


@dataclass
class _Read:
    """A row that is being read, and how many of the batches that wait for it are yet to come."""

    future: Future[Any]
    waiting: int = 0


def passes_of(works: Sequence[Work]) -> list[list[Work]]:
    """Return the works that are done together: those that read files, so that each file is decoded once; others alone.

    Files come first: one that cannot be read is found before anything is written.

    The components of those together are in memory at the same time.
    """
    reading = [work for work in works if work.reads_files]
    alone = [[work] for work in works if work not in reading]
    return [reading, *alone] if reading else alone


def read_ahead(
    dataset: UnifiedDataset,
    pipe: BasePipeline,
    task: str,
    extra_inputs: Sequence[str],
    works: Sequence[Work],
    batch_size: int,
    readers: int,
    on_error: Callable[[Job, DsctlError], None],
) -> Iterator[Batch]:
    """Yield the batches of `works`, those of each in its order, while threads read the rows of the batches to come.

    Batches of several works that read a row follow one another, so that the row is read once for all of them. At most
    a few batches of each work wait at a time.

    Args:
        dataset: The dataset.
        pipe: The pipeline with the components of `works`.
        task: The task whose loss reads the rows.
        extra_inputs: The columns that the pipeline needs beside image and prompt.
        works: The work of one pass.
        batch_size: The most jobs of a batch.
        readers: The number of threads.
        on_error: Called for a job whose row cannot be read.
    """

    def batches_of(number: int, work: Work) -> Iterator[tuple[int, int, list[Job]]]:
        # One by one: to say what is alike, a unit may have to tokenize a prompt.
        for shard, jobs in enumerate(work.shards):
            for batch in split_into_batches(jobs, batch_size, lambda job: batch_key_of(pipe, work.group, job.sample)):
                yield number, shard, batch

    streams = [batches_of(number, work) for number, work in enumerate(works)]
    batches = heapq.merge(*streams, key=lambda each: each[2][0].row)
    ahead = (2 + 2 * readers // batch_size) * len(works)
    waiting: list[tuple[int, int, list[Job]]] = []
    rows: dict[int, _Read] = {}
    with ThreadPoolExecutor(readers) as pool:

        def fill() -> None:
            for batch in islice(batches, ahead - len(waiting)):
                for job in batch[2]:
                    if has_pictures(job.sample):
                        if job.row not in rows:
                            rows[job.row] = _Read(pool.submit(read_row, dataset, pipe, task, extra_inputs, job.row))
                        rows[job.row].waiting += 1
                waiting.append(batch)

        def inputs(job: Job) -> Sample:
            if not has_pictures(job.sample):
                return job.sample
            read = rows[job.row]
            read.waiting -= 1
            if not read.waiting:
                del rows[job.row]
            return inputs_of_job(job, read.future.result())

        try:
            fill()
            while waiting:
                number, shard, batch = waiting.pop(0)
                fill()
                jobs, samples = [], []
                for job in batch:
                    try:
                        samples.append(inputs(job))
                        jobs.append(job)
                    except DsctlError as error:
                        on_error(job, error)
                yield Batch(works[number], shard, len(batch), jobs, samples)
        finally:
            pool.shutdown(cancel_futures=True)
