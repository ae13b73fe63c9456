"""Have several workers want the same leases at once, in a folder or in a store."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any


def taken_at_once(workers: Sequence[Any], count: int) -> list[str]:
    """Let `workers`, which join and stay, take `count` leases at once; return the names of those that were taken."""
    got: list[str] = []
    start = threading.Barrier(len(workers))

    def take(worker: Any) -> None:
        start.wait()
        got.extend(f"{number:x}" for number in range(count) if worker.take(f"{number:x}"))

    for worker in workers:
        worker.__enter__()
    threads = [threading.Thread(target=take, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got
