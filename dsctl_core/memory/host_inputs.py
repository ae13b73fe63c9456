"""Keep what gradient checkpointing stores in main memory, copied there and back beside the computation.

torch's own `save_on_cpu` waits for each copy. Here copies have a stream of their own: those of a block leave while it
runs, and those of the block before it come back while it is recomputed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

from dsctl_core.memory.pinned import pinned_like

_elsewhere: ContextVar[tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]] | None]
_elsewhere = ContextVar("elsewhere", default=None)


@contextmanager
def saved_by(pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]) -> Iterator[None]:
    """Inside the context, use `pack` and `unpack` for what would be kept in main memory: a dry run has none."""
    token = _elsewhere.set((pack, unpack))
    try:
        yield
    finally:
        _elsewhere.reset(token)


@dataclass(eq=False)
class _Kept:
    """A tensor in main memory, and on the GPU from when it is fetched until autograd takes it."""

    host: Any
    tensor: Tensor | None = None


@dataclass
class _Block:
    """What one block keeps; `leaving` holds the memory of tensors until their copies are made."""

    kept: list[_Kept] = field(default_factory=list)
    leaving: list[Tensor] = field(default_factory=list)
    moved: Any = None  # the event at the end of the last copies
    device: torch.device | None = None  # of these


class HostInputs:
    """What the checkpointed blocks of one forward pass keep, in main memory, pinned where there is a GPU.

    The GPU has that of two blocks at most, of the one in use and the next, however far the host is ahead: its memory
    is allocated and given back in the order of the computation, which waits for the copies.
    """

    def __init__(self) -> None:
        self.blocks: list[_Block] = []
        self.moves = _elsewhere.get()
        self.stream: Any = None
        weakref.finalize(self, _wait_for_unused, self.blocks).atexit = False

    @contextmanager
    def of_block(self) -> Iterator[None]:
        """Keep what autograd saves inside the context, which runs the next block, in main memory."""
        if self.moves is None and not torch.cuda.is_available():
            with save_on_cpu():
                yield
            return
        block, number = _Block(), len(self.blocks)
        self.blocks.append(block)
        with saved_tensors_hooks(lambda tensor: self._pack(block, tensor), lambda kept: self._unpack(number, kept)):
            yield
        _wait(block)  # after the block, which ran meanwhile
        block.leaving.clear()

    def _pack(self, block: _Block, tensor: Tensor) -> _Kept | Tensor:
        if self.moves is None and not _on_gpu(tensor):
            return tensor
        kept = _Kept(self._to_host(block, tensor) if self.moves is None else self.moves[0](tensor))
        block.kept.append(kept)
        block.leaving.append(tensor.detach())
        return kept

    def _to_host(self, block: _Block, tensor: Tensor) -> tuple[torch.device, Tensor]:
        host = pinned_like(tensor)
        with self._beside(tensor.device, block):
            host.copy_(tensor, non_blocking=True)
        return tensor.device, host

    def _unpack(self, number: int, kept: _Kept | Tensor) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        if kept.tensor is None:
            self._fetch(number)
        block, tensor = self.blocks[number], kept.tensor
        assert tensor is not None
        _wait(block)
        kept.tensor = None  # autograd has it now
        if number and all(each.tensor is None for each in self.blocks[number - 1].kept):
            self._fetch(number - 1)
        return tensor

    def _fetch(self, number: int) -> None:
        """Bring what a block keeps to the GPU."""
        block = self.blocks[number]
        for kept in block.kept:
            if self.moves is not None:
                kept.tensor = self.moves[1](kept.host)
                continue
            device, host = kept.host
            kept.tensor = torch.empty_like(host, device=device)
            with self._beside(device, block):
                kept.tensor.copy_(host, non_blocking=True)

    @contextmanager
    def _beside(self, device: torch.device, block: _Block) -> Iterator[None]:
        """Copy beside the computation, after what it was given so far."""
        self.stream = self.stream or torch.cuda.Stream(device)
        self.stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self.stream):
            yield
            block.moved, block.device = self.stream.record_event(), device


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _wait(block: _Block) -> None:
    """Let the computation wait for the last copies of a block."""
    if block.moved is not None:
        torch.cuda.current_stream(block.device).wait_event(block.moved)


def _wait_for_unused(blocks: list[_Block]) -> None:
    """Wait for copies to memory that is given back without use, as after an error."""
    for block in blocks:
        if block.leaving or any(kept.tensor is not None for kept in block.kept):
            _wait(block)
