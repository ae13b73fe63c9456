"""Dropout in front of a LoRA whose masks depend on the sample alone.

The mask of a sample comes from its seed and the layer, not from a running generator: it is the same in any batch, on
any process, after resuming, and when gradient checkpointing computes the layer a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsctl_core.random import derive_seed


class SampleDropout(nn.Module):
    """Dropout by the seeds of the samples of a batch; nothing is dropped without gradients or in evaluation mode."""

    def __init__(self, p: float, layer: int) -> None:
        super().__init__()
        self.p, self.layer = p, layer
        self.seeds: tuple[int, ...] = ()

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """Drop a share `p` of `x` (B, ...) and scale up the rest; of B samples each draws its own mask.

        Where the first dimension is not that of the samples, one mask is drawn from all their seeds.
        """
        if not self.training or not torch.is_grad_enabled():
            return x
        if len(self.seeds) == len(x):
            # Row by row: a text that is padded to the length of a longer one keeps its mask.
            keep = torch.stack([self._kept(x[index], (seed,)) for index, seed in enumerate(self.seeds)])
        else:
            keep = self._kept(x, self.seeds)
        return x * keep.to(x.dtype) / (1 - self.p)

    def _kept(self, x: Tensor, seeds: tuple[int, ...]) -> Tensor:
        generator = torch.Generator(x.device).manual_seed(derive_seed(self.layer, *seeds))
        return torch.rand(x.shape, generator=generator, device=x.device) >= self.p

    def extra_repr(self) -> str:
        """Say what is dropped."""
        return f"p={self.p}"


def put_dropout(layers: Sequence[Any], adapter: str, p: float) -> None:
    """Put a SampleDropout in front of `adapter` of each of peft's layers."""
    for number, layer in enumerate(layers):
        layer.lora_dropout[adapter] = SampleDropout(p, number)
        layer.train()


def dropouts_of(model: nn.Module) -> list[SampleDropout]:
    """Return every SampleDropout of `model`."""
    return [module for module in model.modules() if isinstance(module, SampleDropout)]


def seed_dropout(dropouts: Sequence[SampleDropout], seeds: Sequence[int | None]) -> None:
    """Tell `dropouts` the seeds of the samples that come next; 0 stands for one without a seed."""
    for dropout in dropouts:
        dropout.seeds = tuple(0 if seed is None else seed for seed in seeds)
