"""Samples between the stages: what is rounded for a cache is rounded at any depth, and comes out in its own dtype."""

from __future__ import annotations

import torch

from dsctl_core.cache.codec import decode, encode
from dsctl_core.stages.sample import rounded


def test_what_is_rounded_is_what_a_cache_gives_back() -> None:
    values = torch.linspace(0, 1, 7)
    sample = {
        "shared.a": values,
        "shared.b": [{"x": values * 3, "y": (values / 7, 5, "text")}],
        "posi.c": {"count": torch.arange(3), "half": values.bfloat16(), "flag": None},
    }
    tensors: list[torch.Tensor] = []
    structure = encode(sample, tensors, torch.bfloat16)
    expected = decode(structure, tensors.__getitem__)
    made = rounded(sample, torch.bfloat16)
    assert not torch.equal(made["shared.b"][0]["x"], values * 3)
    assert torch.equal(made["shared.a"], expected["shared.a"])
    assert torch.equal(made["shared.b"][0]["x"], expected["shared.b"][0]["x"])
    assert torch.equal(made["shared.b"][0]["y"][0], expected["shared.b"][0]["y"][0])
    assert made["shared.b"][0]["y"][1:] == (5, "text")
    assert made["shared.a"].dtype is torch.float32
    assert torch.equal(made["posi.c"]["count"], torch.arange(3))
    assert made["posi.c"]["half"].dtype is torch.bfloat16
    assert rounded(sample, torch.float32)["shared.b"][0]["x"].equal(values * 3)
