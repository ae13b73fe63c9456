"""Which tensors a state holds."""

from __future__ import annotations

import torch
from torch import nn

from dsctl_core.training.state.trained import trained_tensors


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(5, 3), nn.BatchNorm1d(3)
        self.head, self.frozen = nn.Linear(3, 5, bias=False), nn.Linear(3, 3).requires_grad_(False)
        self.head.weight = self.embed.weight


def test_a_weight_that_modules_share_is_held_once_and_what_is_frozen_not_at_all() -> None:
    model = Tied()
    found = trained_tensors(model)
    assert set(found) == {
        "embed.weight",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    }
    with torch.no_grad():
        found["embed.weight"].fill_(2)
    assert (model.head.weight == 2).all()
