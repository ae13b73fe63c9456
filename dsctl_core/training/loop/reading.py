"""Read samples ahead of a GPU: in worker processes where files are decoded, else in a thread, and into pinned memory.

A GPU that waits for its next samples costs as much as one that computes. On a CPU nothing is read ahead unless it is
asked for: the cores that would read are those that compute.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.data import UnifiedDataset
from dsctl_core.progress import Progress

if TYPE_CHECKING:
    from accelerate import Accelerator

MOST_WORKERS = 4  # processes for each GPU
USUAL_AHEAD = 2  # batches that each process, or the thread, has ready; as in torch
MOST_SAMPLES = 16  # that wait where nobody says how many processes read: clips of 81 frames at 480p take 100 MB each


@dataclass(frozen=True)
class Reading:
    """How the batches of a process are read: by `workers` processes, by a thread, or by the loop itself in between.

    Each of these processes, or the thread, has `ahead` batches ready. With `pinned`, tensors wait in pinned memory,
    from which a GPU copies without making the host wait.
    """

    workers: int = 0
    in_thread: bool = False
    ahead: int = USUAL_AHEAD
    pinned: bool = False


def plan_reading(workers: int | None, dataset: Any, accelerator: Accelerator, batch_size: int) -> Reading:
    """Return how to read batches of `batch_size` of `dataset`. `workers` is what a user asks for; None chooses.

    Chosen for a GPU: for files that are decoded, up to `MOST_WORKERS` processes, and no more than there are cores
    beside that of the training process. A thread for a cache, whose tensors would go through the shared memory of
    the system, of which a container has 64 MB, and for datasets that are not known, which may hold a GPU's tensors.
    """
    on_gpu = accelerator.device.type == "cuda"
    if workers is not None or not on_gpu:
        return Reading(workers=workers or 0, pinned=on_gpu and bool(workers))
    if not isinstance(dataset, UnifiedDataset) or not _forks():
        return Reading(in_thread=True, pinned=True)
    neighbours = min(accelerator.num_processes, max(torch.cuda.device_count(), 1))  # processes on this machine
    chosen = max(min(_cores() // neighbours - 1, MOST_WORKERS, MOST_SAMPLES // batch_size), 1)
    ahead = USUAL_AHEAD if chosen * USUAL_AHEAD * batch_size <= MOST_SAMPLES else 1
    return Reading(workers=chosen, ahead=ahead, pinned=True)


def read_alone(dataset: Any) -> Any:
    """Return `dataset` for a thread: with files of its own where they are open, as a file has one place to read at."""
    return dataset.reopened() if isinstance(dataset, CachedDataset) else dataset


def verify_read(dataset: Any, progress: Progress) -> None:
    """Wait until the shards that samples were read from are whole and verified; raise DsctlError for one that is not.

    The run is saved by then: an error of the network loses nothing.
    """
    if isinstance(dataset, CachedDataset) and (pending := dataset.pending()):
        progress.note(f"Fetching the rest of {pending} shards, to compare them with their checksums")
        dataset.finish()


def pin_tensors(value: Any) -> Any:
    """Return `value` with the tensors in its dicts, lists and tuples copied into pinned memory."""
    if isinstance(value, Tensor):
        return value.pin_memory() if value.device.type == "cpu" else value
    if isinstance(value, dict):
        return {key: pin_tensors(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(pin_tensors(each) for each in value)
    return value


class ThreadedLoader:
    """The batches of `loader`, read by a thread that is `ahead` of who takes them, and pinned.

    The thread ends with the iteration. What goes wrong in it is raised where the batch is taken.
    """

    def __init__(self, loader: DataLoader, ahead: int, device: torch.device) -> None:
        self.loader, self.ahead, self.device = loader, ahead, device

    def __iter__(self) -> Iterator[list[Any]]:
        batches: Iterator[list[Any]] = iter(self.loader)
        end: Any = object()

        def use_device() -> None:
            if self.device.type == "cuda":  # a thread begins on the first GPU, and pinning would take memory there
                torch.cuda.set_device(self.device)

        def read() -> Any:
            batch: Any = next(batches, end)
            return batch if batch is end else [each.pin_memory() for each in batch]

        pool = ThreadPoolExecutor(1, "samples", use_device)
        try:
            coming = deque(pool.submit(read) for _ in range(self.ahead))
            while (batch := coming.popleft().result()) is not end:
                coming.append(pool.submit(read))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)


def end_workers(loader: Any) -> None:
    """End the worker processes of a torch loader. Left to the collector, they outlive a run that failed."""
    if isinstance(loader, DataLoader) and loader.num_workers and loader._iterator is not None:
        loader._iterator._shutdown_workers()  # type: ignore[attr-defined] # torch has no public way


def _forks() -> bool:
    """Return whether a new process begins as a copy of this one, so that it need not import and load all anew."""
    return multiprocessing.get_all_start_methods()[0] == "fork"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
