"""Pause Python's garbage collector while large libraries are imported."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_gc() -> Iterator[None]:
    """Disable garbage collection inside the block, for imports of torch, diffusers and similar libraries.

    Such imports create hundreds of thousands of long-lived objects, and the collector would traverse the growing heap
    repeatedly, for an eighth of the import time or more. Blocks can be nested; a collector that was disabled before
    stays disabled.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
