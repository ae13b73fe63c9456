"""Nested values come back from a file as they were, and what is no value is refused before anything is written."""

from __future__ import annotations

import math

import pytest
import torch

from dsctl_core.errors import DsctlError
from dsctl_core.training.state.values import read_values, tensor_bytes, write_values

SHARED = torch.arange(6.0)
VALUES = {
    "nothing": None,
    "numbers": [0, -1, 2**62, 0.1, 1e-300, math.inf, True, False],
    "texts": ("", "ä", "a\nb"),
    3: {"a": {}, "b": [], "c": ()},
    "dtypes": [torch.randn(3).to(d) for d in (torch.float32, torch.bfloat16, torch.float16, torch.float64)],
    "bytes": torch.randint(0, 256, (5,), dtype=torch.uint8),
    "flags": torch.tensor([True, False]),
    "small": torch.tensor(7, dtype=torch.int64),
    "empty": torch.zeros(0, 3),
    "views": {"whole": SHARED, "again": SHARED, "part": SHARED[2:4], "turned": SHARED.view(2, 3).T},
}


def same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_values_come_back_to_the_bit(tmp_path):
    write_values(tmp_path / "a.safetensors", VALUES)
    assert same(read_values(tmp_path / "a.safetensors"), VALUES)


def test_a_number_that_is_not_one_comes_back(tmp_path):
    write_values(tmp_path / "a.safetensors", [math.nan])
    assert math.isnan(read_values(tmp_path / "a.safetensors")[0])


def test_what_cannot_be_kept_is_named_with_its_place(tmp_path):
    with pytest.raises(DsctlError, match=r"a set at state\.0\.exp_avg"):
        write_values(tmp_path / "a.safetensors", {"state": {0: {"exp_avg": {1}}}})
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_something_else_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(DsctlError, match="no file of a training state"):
        read_values(tmp_path / "a.safetensors")


def test_the_size_of_values_is_that_of_their_tensors():
    assert tensor_bytes({"a": [torch.zeros(3), (torch.zeros(2, dtype=torch.bfloat16), 5)], "b": None}) == 16
