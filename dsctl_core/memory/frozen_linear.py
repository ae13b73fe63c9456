"""Compute with frozen weights that are not kept: each pass, also backward, makes or fetches the weight again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class FrozenLinear(nn.Linear):
    """A frozen linear layer whose weight is made when it is needed; autograd keeps none of it."""

    def whole_weight(self, like: Tensor) -> Tensor:
        """Return the weight (out, in) on the device of `like`; every subclass implements it."""
        raise NotImplementedError

    def whole_bias(self, weight: Tensor) -> Tensor | None:
        """Return the bias for a computation with `weight`."""
        return self.bias

    def forward(self, input: Tensor) -> Tensor:
        """Return the output of the linear layer for `input` (..., in)."""
        result: Tensor = _Product.apply(input, self)
        return result


class _Product(torch.autograd.Function):
    """Compute x @ W^T + b with a W that is made when needed and has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        weight = layer.whole_weight(x)
        return linear(x, weight, layer.whole_bias(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        # Compute in the dtype of the forward pass, which under autocast is that of the output.
        weight = ctx.layer.whole_weight(grad).to(grad.dtype)
        return (grad @ weight).to(ctx.dtype), None
