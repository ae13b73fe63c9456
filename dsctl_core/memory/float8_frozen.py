"""Frozen linear layers of torchao's float8 training; imported where torchao is installed alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchao.float8.float8_linear import Float8Linear, matmul_with_hp_or_float8_args
from torchao.float8.float8_scaling_utils import hp_tensor_to_float8_dynamic
from torchao.float8.float8_training_tensor import Float8TrainingTensor, GemmInputRole


class FrozenFloat8Linear(Float8Linear):
    """A frozen layer that multiplies in float8, without the gradient of its weight, which torchao always computes.

    With `hold` its weight is rounded once, and held in 8 bits, with `weight_scale`; else it is rounded in each pass.
    """

    weight: nn.Parameter
    weight_scale: Tensor  # () float32, where the weight is held

    @torch.no_grad()
    def hold(self) -> None:
        """Hold the weight (out, in) in float8: what each pass would make of it."""
        kind = self.config.cast_config_weight.target_dtype
        rounded = hp_tensor_to_float8_dynamic(self.weight, kind, self.linear_mm_config)
        self.register_buffer("weight_scale", rounded._scale, persistent=False)
        self.weight = nn.Parameter(rounded._data, requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        """Return the output (..., out) for `input` (..., in), in the dtype of autocast where it is on."""
        kind = input.device.type
        x = input.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else input
        scale = self.weight_scale if self.weight.dtype.itemsize == 1 else None
        result: Tensor = _Product.apply(x, self.weight.t(), scale, self.linear_mm_config, self.config)
        return result if self.bias is None else result + self.bias.to(result.dtype)


@torch._dynamo.allow_in_graph
class _Product(torch.autograd.Function):
    """torchao's product, of which autograd keeps the weight alone: no gradient needs the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_t: Tensor, scale: Tensor | None, mm_config: Any, config: Any) -> Tensor:
        weight = _rounded(weight_t, scale, x.dtype, mm_config, config.cast_config_weight.target_dtype)
        result: Tensor = matmul_with_hp_or_float8_args.forward(ctx, x, weight, mm_config, config)
        ctx.save_for_backward(weight_t, *(() if scale is None else (scale,)))
        ctx.mm_config = mm_config
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight_t, *scales = ctx.saved_tensors
        (grad,), config = grads, ctx.config
        scale = scales[0] if scales else None
        kind = config.cast_config_weight_for_grad_input.target_dtype
        weight = _rounded(weight_t, scale, grad.dtype, ctx.mm_config, kind)
        rows = hp_tensor_to_float8_dynamic(
            grad.reshape(-1, grad.shape[-1]),
            config.cast_config_grad_output.target_dtype,
            ctx.mm_config,
            gemm_input_role=GemmInputRole.GRAD_OUTPUT,
        )
        result = torch.mm(rows, weight.t())
        return result.reshape(*grad.shape[:-1], result.shape[-1]), None, None, None, None


def _rounded(weight_t: Tensor, scale: Tensor | None, dtype: torch.dtype, mm_config: Any, kind: torch.dtype) -> Any:
    """Return a weight (in, out) in float8 for products in `dtype`: as it is held, or rounded to `kind`."""
    if scale is None:
        return hp_tensor_to_float8_dynamic(weight_t, kind, mm_config, gemm_input_role=GemmInputRole.WEIGHT)
    return Float8TrainingTensor(weight_t, scale, dtype, mm_config, GemmInputRole.WEIGHT)
