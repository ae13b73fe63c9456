"""Python's collector of garbage, kept away while libraries are imported."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_gc() -> Iterator[None]:
    """Collect no garbage inside: for imports of torch, diffusers and their like.

    They make hundreds of thousands of objects that stay, and the collector would walk the growing heap again and
    again: an eighth of the time and more. Nesting is allowed; a collector that was off before stays off.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
