"""Kernels that torch has for GPUs alone, for fake CUDA tensors: without them a build for CPUs takes them apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import rms_norm
from torch.overrides import TorchFunctionMode

from dsctl_core.memory.recompute import recomputed_inside

_ATEN = torch.library.Library("aten", "IMPL")


def _never(*_: Any) -> Any:
    raise NotImplementedError("fake tensors run no kernels")


# Where there is none, autograd does not ask for it, and computes the gradient from sigmoids and products.
_ATEN.impl("silu_backward", _never, "CUDA")


@torch.library.custom_op("fake_gpu::rms_norm", mutates_args=())
def forward(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """Stand for aten's `_fused_rms_norm`: returns the norm and the reciprocal of the deviation."""
    raise NotImplementedError


@forward.register_fake
def _(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)


@torch.library.custom_op("fake_gpu::rms_norm_backward", mutates_args=())
def backward(grad: Tensor, x: Tensor, deviation: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Stand for aten's `_fused_rms_norm_backward`: returns the gradients of the input and of the weight."""
    raise NotImplementedError


@backward.register_fake
def _(grad: Tensor, x: Tensor, deviation: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0 if weight is None else weight.numel(), dtype=x.dtype)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        result, deviation = torch.ops.fake_gpu.rms_norm(x, weight, eps)
        ctx.save_for_backward(x, deviation, weight)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, deviation, weight = ctx.saved_tensors
        result, of_weight = torch.ops.fake_gpu.rms_norm_backward(grads[0].contiguous(), x, deviation, weight)
        return result, of_weight if ctx.needs_input_grad[1] else None, None


class FusedNorms(TorchFunctionMode):
    """Computes RMS norms of fake CUDA tensors in one kernel, as torch for GPUs does since 2.9."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is rms_norm and (args[0] if args else kwargs["input"]).is_cuda:
            given = dict(zip(("input", "normalized_shape", "weight", "eps"), args, strict=False)) | kwargs
            x, weight = given["input"], given["weight"]
            if torch.is_autocast_enabled("cuda"):  # rms_norm is among AT_FORALL_FP32 of ATen/autocast_mode.h
                x, weight = x.float(), None if weight is None else weight.float()
            return _Norm.apply(x, weight, given["eps"])
        return func(*args, **kwargs)


@contextmanager
def kernels_of_a_gpu() -> Iterator[None]:
    """Use these kernels inside the context, also where blocks are recomputed."""
    with FusedNorms(), recomputed_inside(FusedNorms):
        yield
