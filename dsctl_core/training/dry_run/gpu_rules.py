"""Have fake tensors on the CPU take the memory that those of a GPU take: autocast of CUDA has other rules.

On a GPU, autocast computes norms, softmax, sums and powers in float32, and backward keeps their inputs in float32. On a
CPU they stay in 16 bits. The list is torch's: https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-autocast-to-float32
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import layer_norm, rms_norm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from dsctl_core.memory.fused import as_on_a_gpu
from dsctl_core.memory.host_inputs import saved_by
from dsctl_core.memory.recompute import recomputed_inside

MIB = 2**20
# The context of CUDA with the kernels of torch, and the workspaces of cuBLAS: others report 0.4 to 0.6 GB.
CONTEXT = 512 * MIB
# The share of what is allocated and freed at every step that the caching allocator cannot reuse in one piece.
FRAGMENTED = 0.03

FLOAT32 = frozenset(
    [
        "acos",
        "asin",
        "cosh",
        "erfinv",
        "exp",
        "expm1",
        "log",
        "log10",
        "log2",
        "log1p",
        "reciprocal",
        "rsqrt",
        "sinh",
        "tan",
        "pow",
        "__pow__",
        "__rpow__",
        "softplus",
        "layer_norm",
        "rms_norm",
        "group_norm",
        "cosine_similarity",
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
        "mse_loss",
        "cumprod",
        "cumsum",
        "softmax",
        "log_softmax",
        "prod",
        "sum",
        "norm",
        "vector_norm",
        "logsumexp",
        "interpolate",
    ]
)


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Compute by the rules of CUDA's autocast inside the context, and so blocks of it that are recomputed later."""
    with recomputed_inside(CudaAutocast), CudaAutocast(), as_on_a_gpu(), saved_by(_off_the_gpu, _on_the_gpu):
        yield


def _off_the_gpu(tensor: Tensor) -> Any:
    """Return what makes a fake tensor anew: one in main memory takes none of the GPU's."""
    if not isinstance(tensor, FakeTensor):
        return tensor
    return tensor.fake_mode, (tensor.size(), tensor.stride()), {"dtype": tensor.dtype, "device": tensor.device}


def _on_the_gpu(saved: Any) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    mode, form, about = saved
    with mode:
        return torch.empty_strided(*form, **about)


class CudaAutocast(TorchFunctionMode):
    """Computes in float32 what CUDA's autocast does, wherever the CPU's is on."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        wide = torch.is_autocast_enabled("cpu")
        if func is rms_norm:
            # A CPU takes it apart; the kernel of a GPU keeps what that of a layer norm keeps.
            named = dict(zip(("input", "normalized_shape", "weight"), args, strict=False)) | kwargs
            func, args, kwargs = layer_norm, (named["input"], named["normalized_shape"], named.get("weight")), {}
        elif getattr(func, "__name__", "") not in FLOAT32:
            return func(*args, **kwargs)
        if not wide:
            return func(*args, **kwargs)
        args, kwargs = tree_map(_wide, (args, kwargs))
        with torch.autocast("cpu", enabled=False):
            return func(*args, **kwargs)


def _wide(value: Any) -> Any:
    small = isinstance(value, Tensor) and value.is_floating_point() and value.itemsize < 4
    return value.float() if small else value


def reserved(peak: int, weights: int) -> int:
    """Return what the allocator takes from a GPU for `peak` bytes of tensors, of which `weights` stay all the time."""
    return CONTEXT + peak + int(FRAGMENTED * (peak - weights))
