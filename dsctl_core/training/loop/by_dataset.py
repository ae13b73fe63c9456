"""Keep the mean loss of each of several datasets, over the samples of a step in all processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dsctl_core.data.several import DATASET


class LossByDataset:
    """Adds up the losses of samples by dataset; `labels` are the names of the datasets, none for a single one."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self.totals = [0.0] * 2 * len(self.labels)

    def sums(self, samples: Sequence[Any], losses: Tensor | None, like: Tensor) -> Tensor:
        """Return the sum of `losses`, (B,), and the number of `samples` of each dataset: first all sums, then numbers.

        The result has the device and dtype of `like`, and nothing waits for it. A module that tells no losses of its
        samples counts none.
        """
        precision = torch.float32 if like.device.type == "mps" else torch.float64  # an Apple GPU has no float64
        found = torch.zeros(2 * len(self.labels), dtype=precision, device=like.device)
        if self.labels and losses is not None and samples:
            own = losses[: len(samples)].to(precision)
            places = torch.tensor([sample[DATASET] for sample in samples][: len(own)], device=like.device)
            found.index_add_(0, places, own)
            found.index_add_(0, places + len(self.labels), torch.ones_like(own))
        return found.to(like.dtype)

    def add(self, sums: Sequence[float]) -> None:
        """Add `sums`, which may be divided by the number of processes."""
        self.totals = [before + more for before, more in zip(self.totals, sums, strict=True)]

    def take(self) -> dict[str, float]:
        """Return the mean loss of each dataset that had a sample, by name, and begin anew."""
        count = len(self.labels)
        totals, self.totals = self.totals, [0.0] * 2 * count
        pairs = zip(self.labels, totals[:count], totals[count:], strict=True)
        return {label: total / number for label, total, number in pairs if number}
