"""Inspect files in worker processes, one for each core."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from dsctl_core.data.inspection import FileFacts, inspect_all
from dsctl_core.data.problems import DataError
from dsctl_core.errors import DsctlError

MIN_FILES_FOR_PROCESSES = 64  # with fewer files, starting processes takes longer than they save


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def inspect_in_processes(
    chunks: list[list[Path]], videos: bool, workers: int, files: int
) -> Iterator[list[FileFacts | DataError]]:
    """Yield what `inspect_all` finds out about each of `chunks`, in order; of few `files` without another process."""
    if workers == 1 or files < MIN_FILES_FOR_PROCESSES:
        for chunk in chunks:
            yield inspect_all(chunk, videos)
        return
    import signal
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    # Spawned: a fork would copy the state of other threads, such as one that draws a progress bar.
    pool = ProcessPoolExecutor(
        min(workers, len(chunks)),
        mp_context=get_context("spawn"),
        initializer=signal.signal,  # only the parent process handles Ctrl-C
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        yield from pool.map(inspect_all, chunks, [videos] * len(chunks))
    except BrokenProcessPool as error:
        raise DsctlError(
            "a worker process that decodes files was killed, probably because memory ran out",
            hint="use fewer worker processes: --workers 1",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
