"""Estimate what several machines read, write and ask of stores: from rows that are read here, and from counts of files.

Counts of requests follow what the code asks where nothing goes wrong; what answers a store gives again is not counted.
How long the networks compute is not in it: a dry run loads no weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.cache.remote_shards import grows
from dsctl_core.data import UnifiedDataset
from dsctl_core.data.frame_folder import files_of
from dsctl_core.files.digest import digest_files, digest_stream
from dsctl_core.remote import anywhere
from dsctl_core.remote.address import address_of, is_remote
from dsctl_core.remote.backends import PAGE
from dsctl_core.remote.conditional import PART
from dsctl_core.remote.growing import block_count
from dsctl_core.remote.local import disk_limit
from dsctl_core.remote.store import RANGE, backend_of
from dsctl_core.stages.encode import READERS, parts_in_a_shard
from dsctl_core.training.loop.reading import plan_reading

if TYPE_CHECKING:
    from dsctl_core.training.plan.encode import EncodePlan
    from dsctl_core.training.plan.plan import TrainingPlan

ROWS, REMOTE_ENTRIES = 8, 2  # that are read to measure; an entry at an address takes whole shards
STATE_FILES = 6  # of a state that one process has written


@dataclass(frozen=True)
class Traffic:
    """What a command on `nodes` machines reads, writes and asks. A node has local copies of its own.

    Args:
        nodes: Machines.
        samples: Rows that were read to know the rest.
        read_bytes: That each node reads of the dataset or the cache, whether from a disk or a store.
        written_bytes: That all nodes write together, to the disk or a store.
        requests: Of all nodes to stores; 0 where everything is on disks.
        reading_seconds: That each node reads and decodes, at the pace of the rows that were read here.
    """

    nodes: int
    samples: int
    read_bytes: int
    written_bytes: int
    requests: int
    reading_seconds: float


@dataclass(frozen=True)
class Pace:
    """Of one sample, on average: the bytes of its files, their number, and the seconds to hash and to decode them."""

    samples: int
    bytes: float
    files: float
    hashing: float
    decoding: float


def measure(source: UnifiedDataset | CachedDataset) -> Pace:
    """Read some rows, spread over all of them, one after another."""
    if isinstance(source, CachedDataset):
        entries = max(len(source.entries), 1)
        places = spread(len(source), REMOTE_ENTRIES if is_remote(source.folder) else ROWS)
        size = source.manifest.bytes["shards"] / entries
        return Pace(len(places), size, 0, 0.0, _seconds(source, places))
    rows = source.rows_in_use
    chosen = [rows[place] for place in spread(len(rows), ROWS)]
    files = [path for row in chosen for key in source.data_file_keys for path in source.files(row, key)]
    if source.takes_folders:
        files = [file for path in files for file in files_of(path)]
    began = time.perf_counter()
    anywhere.digests(files, digest_files, digest_stream)
    hashing = (time.perf_counter() - began) / len(chosen)
    size = sum(anywhere.file_size(str(path)) or 0 for path in files) / len(chosen)
    positions = [source.mixture.position_of(place) for place in spread(len(rows), ROWS)]
    return Pace(len(chosen), size, len(files) / len(chosen), hashing, _seconds(source, positions))


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` places, spread evenly over `count`."""
    taken = min(count, most)
    return [place * count // taken for place in range(taken)]


def _seconds(source: UnifiedDataset | CachedDataset, places: Sequence[int]) -> float:
    source[places[0]]  # what is imported or opened at first does not count
    began = time.perf_counter()
    for place in places:
        source[place]
    return (time.perf_counter() - began) / len(places)


def traffic_of_encoding(plan: EncodePlan, output: Path, entry_bytes: int, groups: int, nodes: int) -> Traffic:
    """Estimate what `nodes` commands that share the work read, write and ask. Each reads all files for their hashes.

    An entry has `entry_bytes` in parts of `groups` groups.
    """
    pace, rows = measure(plan.dataset), len(plan.dataset.rows_in_use)
    files, written = pace.bytes * rows, entry_bytes * rows
    requests = nodes * requests_of_files(plan.dataset, pace, rows, again=rows / nodes)
    if is_remote(output):
        requests += requests_of_encoding(rows, groups, written, nodes, shared=plan.shared)
    readers = plan.data.dataset_num_workers or READERS
    return Traffic(
        nodes,
        pace.samples,
        read_bytes=round(files + files / nodes),
        written_bytes=written,
        requests=round(requests),
        reading_seconds=round(rows * pace.hashing + rows / nodes * pace.decoding / readers, 3),
    )


def traffic_of_training(plan: TrainingPlan, steps: int, saves: int, disk: dict[str, int], nodes: int) -> Traffic:
    """Estimate what a run on `nodes` machines, with the same number of processes each, reads, writes and asks."""
    training, source, options = plan.options.training, plan.source, plan.options
    processes = (options.processes.num_processes or plan.accelerator.num_processes) * nodes
    samples = steps * training.batch_size * training.gradient_accumulation_steps * processes
    pace, own = measure(source), samples / nodes
    if isinstance(source, CachedDataset):
        read, requests = _of_cache(source, own, batches=training.batch_size > 1)
        requests *= nodes
        read = read if is_remote(source.folder) else own * pace.bytes
    else:
        rows = len(source.rows_in_use)
        requests = nodes * requests_of_files(source, pace, rows, again=own)
        encoded = disk["cache"] / rows * own if plan.encoding is not None else 0  # of the run's own cache
        once = pace.bytes * rows if plan.encoding is not None or requests else pace.bytes * own
        read = once + encoded
    limit, weights = options.output.state_total_limit, disk["checkpoints"] // saves
    state = disk["state"] // min(saves, limit)
    saved = saves * (weights + state)
    if plan.mirror is not None:
        requests += requests_of_mirror(saves, limit, weights, state)
    written = disk["cache"] + saved * (1 if plan.mirror is None else 2)
    workers = max(
        plan_reading(options.data.dataset_num_workers, source, plan.accelerator, training.batch_size).workers, 1
    )
    seconds = samples / processes * pace.decoding / workers
    return Traffic(nodes, pace.samples, round(read), written, round(requests), round(seconds, 3))


def requests_of_files(dataset: UnifiedDataset, pace: Pace, rows: int, again: float) -> float:
    """Return the requests of one node that reads all files of a dataset, and `again` samples more.

    Those are read from local copies, as far as there is room for these.
    """
    keys = dataset.data_file_keys
    far = next((path for key in keys for path in dataset.files(dataset.rows_in_use[0], key) if is_remote(path)), None)
    if far is None:
        return 0
    page = backend_of(address_of(far)).page
    each = max(pace.files, math.ceil(pace.bytes / RANGE))
    return math.ceil(rows * pace.files / page) + each * (rows + (again if pace.bytes * rows > disk_limit() else 0))


def _of_cache(source: CachedDataset, samples: float, *, batches: bool) -> tuple[float, float]:
    """Return the bytes and the requests of one node that takes `samples` from a cache at an address.

    It fetches whole shards: of a random order soon all of them, once if there is room for them, else in each epoch.
    """
    if not is_remote(source.folder):
        return 0, 0
    sizes = source.manifest.shards.values()
    total, count = sum(sizes), len(sizes)
    parts = len(source.entries[0].parts)
    turns = min(samples * parts / count, 1 if total <= disk_limit() else max(samples / len(source.entries), 1))
    pieces = sum(block_count(size) if grows(total) else math.ceil(size / RANGE) for size in sizes)
    return turns * total, requests_of_reading(count, turns * pieces, headers=batches)


def requests_of_reading(shards: int, pieces: float, *, headers: bool = False) -> float:
    """Return the requests of one node that reads `shards` in so many `pieces` together.

    Manifest and index, a listing, the pieces, and the headers where batches are formed.
    """
    return 4 + math.ceil(shards / PAGE) + pieces + (shards if headers else 0)


def requests_of_encoding(rows: int, groups: int, written: int, nodes: int, *, shared: bool) -> float:
    """Return the requests to write a cache to an address, of `groups` parts for each row, by all of its writers."""
    shards = groups * math.ceil(rows / parts_in_a_shard(rows))
    pages = max(math.ceil(shards / PAGE), 1)
    uploads = shards * requests_of_upload(written // shards)
    if not shared and nodes == 1:
        return 14 + 7 * pages + uploads
    # Each worker tries the conditions, and reads the headers of what others have made. Of each claim, which is a shard,
    # are a lease that is given back, and before and after the work a look at the shards and the notes that there are.
    return nodes * (28 + 7 * pages) + shards * (4 + 2 * pages) + uploads + (nodes - 1) * shards


def requests_of_mirror(saves: int, limit: int, weights: int, state: int) -> int:
    """Return the requests to copy a run to its mirror, which keeps `limit` states.

    Of each save there are a listing, mirror.json before and after, the files of the state, the weights and the metrics.
    """
    each = 3 + STATE_FILES - 1 + requests_of_upload(state) + requests_of_upload(weights) + 1
    return 6 + saves * each + STATE_FILES * max(saves - limit, 0)


def requests_of_upload(size: int) -> int:
    """Return the requests to write a file of `size` bytes: one, or one for each part and two around them."""
    return 1 if size <= PART else math.ceil(size / PART) + 2
