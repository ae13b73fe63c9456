"""Pause Python's garbage collector while large libraries are imported."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MANY = 100  # modules: an import of that many is one of a large library

_frozen = False


def freeze_imports() -> None:
    """Let the collector skip, from now on, all that is alive when large libraries have been imported.

    For a process that is dsctl's own, as the command line's is: in another's, what is garbage at that time would never
    be collected.
    """
    global _frozen
    _frozen = True


@contextmanager
def paused_gc() -> Iterator[None]:
    """Disable garbage collection inside the block, for imports of torch, diffusers and similar libraries.

    Such imports create hundreds of thousands of long-lived objects, and the collector would traverse the growing heap
    repeatedly, for an eighth of the import time or more; and once more afterwards in each generation, unless
    `freeze_imports` was called. Blocks can be nested; a collector that was disabled before stays disabled.
    """
    was_on = gc.isenabled()
    before = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            if _frozen and len(sys.modules) - before >= MANY:
                gc.freeze()
            gc.enable()
