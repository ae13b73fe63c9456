"""Ask a store again after an error that may pass, and go on at the byte where an answer stopped."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from dsctl_core.errors import DsctlError
from dsctl_core.remote.errors import explain, is_passing

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Patience:
    """How long to wait for a store.

    Args:
        tries: Requests without a new byte, after which it counts as unreachable.
        first_wait: Seconds to wait before the second; doubled each time, and drawn between half of it and all.
        longest_wait: The most seconds to wait between two.
        timeout: Seconds without a byte, or for a connection, after which a request has failed.
    """

    tries: int = 8
    first_wait: float = 0.25
    longest_wait: float = 20.0
    timeout: float = 60.0


def retried(
    patience: Patience, address: str, ask: Callable[[], Answer], moved: Callable[[], int] | None = None
) -> Answer:
    """Return what `ask` returns; ask again after an error that may pass. Other errors are explained.

    `moved` returns how many bytes have come so far: while that grows, the number of tries starts anew.
    """
    failures, before = 0, 0
    while True:
        try:
            return ask()
        except DsctlError:
            raise
        except Exception as error:  # client libraries raise what they like: explained below
            now = moved() if moved is not None else 0
            failures, before = (0 if now > before else failures + 1), now
            if failures >= patience.tries or not is_passing(error):
                raise explain(address, error) from error
        wait = min(patience.first_wait * 2 ** max(failures - 1, 0), patience.longest_wait)
        # Not for training: workers that failed together must not come back together.
        time.sleep(wait * random.uniform(0.5, 1))
