"""Compute a LoRA in training with fewer kernels: one cast of the input, and the sum inside the matrix product.

peft casts the input to float32 and autocast casts it back, for the layer and for the LoRA apart; then it scales and
adds the update in passes over the whole output. Here the input is cast once, the scale is on the rank-sized product,
and cuBLAS adds the update while it multiplies.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn


def fuse_lora_sums(model: nn.Module) -> int:
    """Have the LoRAs in training on `model` compute like this under autocast; return their number.

    DoRAs are left to peft. The parameters stay what and where they are.
    """
    found = [module for module in model.modules() if type(module) is Linear]
    for module in found:
        module.__class__ = FusedLoraLinear
    return len(found)


class FusedLoraLinear(Linear):
    """peft's linear layer with a LoRA; without autocast, or with more than one plain LoRA, it acts like peft's."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return W x + b + scale * B A x for `x` (..., in)."""
        if args or kwargs or not self._is_plain(x):
            whole: Tensor = super().forward(x, *args, **kwargs)
            return whole
        (adapter,) = self.active_adapters
        x = x.to(torch.get_autocast_dtype(x.device.type))
        base: Any = self.base_layer
        rows, shown = (each.reshape(-1, x.shape[-1]) for each in (x, self.lora_dropout[adapter](x)))
        result, hidden = base(rows), self.lora_A[adapter](shown)
        scale, up = self.scaling[adapter], self.lora_B[adapter].weight
        assert isinstance(up, Tensor)
        # In place: as an operation of its own it would copy the output first. Two dimensions: not in place on a view.
        result = result.addmm_(hidden if scale == 1 else hidden * scale, up.t().to(result))
        return result.view(*x.shape[:-1], result.shape[-1])

    def _is_plain(self, x: Tensor) -> bool:
        if not torch.is_autocast_enabled(x.device.type) or self.disable_adapters or self.merged:
            return False
        if len(self.active_adapters) != 1 or self.base_layer._forward_hooks:
            return False
        (adapter,) = self.active_adapters
        if adapter not in self.lora_A or adapter in self.lora_variant or self.lora_bias[adapter]:
            return False
        # ZeRO-3 gathers the weights of a layer when it is called, and lora_B is not.
        return not hasattr(self.lora_B[adapter].weight, "ds_id")
