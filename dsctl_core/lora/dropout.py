"""Apply dropout to the input of a LoRA, with masks that depend only on the sample.

The mask of a sample is derived from its seed and the layer, not drawn from a running generator: it is the same in any
batch, in any process, after resuming, and when gradient checkpointing recomputes the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsctl_core.random import derive_seed


class SampleDropout(nn.Module):
    """Dropout with one mask per sample, derived from its seed; disabled without gradients and in evaluation mode."""

    def __init__(self, p: float, layer: int) -> None:
        super().__init__()
        self.p, self.layer = p, layer
        self.seeds: tuple[int, ...] = ()

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """Zero a share `p` of `x` (B, ...) and scale up the rest, with one mask per sample.

        If the first dimension is not that of the samples, one mask is derived from all seeds.
        """
        if not self.training or not torch.is_grad_enabled():
            return x
        if len(self.seeds) == len(x):
            # Row by row, so that a text keeps its mask when it is padded to the length of a longer one.
            keep = torch.stack([self._kept(x[index], (seed,)) for index, seed in enumerate(self.seeds)])
        else:
            keep = self._kept(x, self.seeds)
        return x * keep.to(x.dtype) / (1 - self.p)

    def _kept(self, x: Tensor, seeds: tuple[int, ...]) -> Tensor:
        generator = torch.Generator(x.device).manual_seed(derive_seed(self.layer, *seeds))
        return torch.rand(x.shape, generator=generator, device=x.device) >= self.p

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return f"p={self.p}"


def put_dropout(layers: Sequence[Any], adapter: str, p: float) -> None:
    """Add a SampleDropout with probability `p` to `adapter` of each of the given peft layers."""
    for number, layer in enumerate(layers):
        layer.lora_dropout[adapter] = SampleDropout(p, number)
        layer.train()


def dropouts_of(model: nn.Module) -> list[SampleDropout]:
    """Return all SampleDropout modules of `model`."""
    return [module for module in model.modules() if isinstance(module, SampleDropout)]


def seed_dropout(dropouts: Sequence[SampleDropout], seeds: Sequence[int | None]) -> None:
    """Set the seeds of the samples of the next batch on all `dropouts`; a sample without a seed gets 0."""
    for dropout in dropouts:
        dropout.seeds = tuple(0 if seed is None else seed for seed in seeds)
