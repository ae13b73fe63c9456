"""Main memory that a GPU copies from while it computes."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from dsctl_core.errors import DsctlError
from dsctl_core.readable import readable_bytes

PAGE = 4096  # bytes; memory is pinned by whole pages, and a page only once


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return `tensor` on `device`. A GPU copies it from pinned memory when it gets there, and the host goes on."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def pinned_like(tensor: Tensor) -> Tensor:
    """Return an uninitialized tensor in pinned memory, of the shape and dtype of `tensor`."""
    return torch.empty(tensor.size(), dtype=tensor.dtype, layout=tensor.layout, device="cpu", pin_memory=True)


def page_aligned(like: Tensor, size: int) -> Tensor:
    """Return `size` uninitialized bytes of main memory (size,) that share no page with other memory.

    They are fake where `like` is.
    """
    whole = -(-size // PAGE) * PAGE
    slab = like.new_empty(whole + PAGE, dtype=torch.uint8, device="cpu")
    return slab[-_address(slab) % PAGE :][:size]


def pin(slab: Tensor, owner: object, stream: torch.cuda.Stream) -> None:
    """Pin the memory of `slab`, from `page_aligned`, until `owner` is gone and `stream` has done its copies.

    `Tensor.pin_memory` would copy it, and round each size up to a power of two: blocks of 680 MB would take 1 GiB
    each. Raises DsctlError where the system refuses.
    """
    cudart, size = torch.cuda.cudart(), -(-slab.numel() // PAGE) * PAGE
    code = int(cudart.cudaHostRegister(slab.data_ptr(), size, 0))
    if code:
        raise DsctlError(
            f"{readable_bytes(size)} of main memory cannot be pinned for the GPU (CUDA error {code})",
            hint="offload fewer blocks, or raise the limit of locked memory (ulimit -l)",
        )
    weakref.finalize(owner, _unpin, slab, stream).atexit = False


def _unpin(slab: Tensor, stream: torch.cuda.Stream) -> None:
    stream.synchronize()
    torch.cuda.cudart().cudaHostUnregister(slab.data_ptr())


def _address(slab: Tensor) -> int:
    from torch._subclasses.fake_tensor import is_fake

    return 0 if is_fake(slab) else slab.data_ptr()
