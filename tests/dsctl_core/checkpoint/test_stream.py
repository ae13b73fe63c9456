"""Rewriting a file changes what is named, a few rows at a time, and nothing else."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsctl_core.checkpoint import stream
from dsctl_core.checkpoint.stream import read_tensor, rewrite, tensor_shapes
from dsctl_core.errors import DsctlError

TENSORS = {
    "a": torch.arange(70.0).reshape(10, 7),
    "b": torch.arange(12).reshape(3, 4),
    "c": torch.ones(5, 3, dtype=torch.bfloat16),
    "d": torch.ones(4, 4).to(torch.float8_e4m3fn),
    "empty": torch.ones(0, 3),
}


@pytest.fixture
def file(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors", metadata={"format": "pt", "note": "kept"})
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize("block", [1, 8, 21, 1 << 22])
def test_rows_are_changed_in_blocks_of_any_size(file, tmp_path, monkeypatch, block):
    monkeypatch.setattr(stream, "BLOCK", block)
    firsts: dict[str, list[int]] = {"a": [], "c": [], "d": []}

    def change(name):
        def add(rows, first):
            assert rows.dtype == torch.float32
            assert rows.numel() <= max(block, rows.shape[1])
            firsts[name].append(first)
            return rows + 1

        return add

    done: list[str] = []
    rewrite(file, tmp_path / "b.safetensors", {name: change(name) for name in firsts}, done.append)
    loaded = load_file(tmp_path / "b.safetensors")
    for name, tensor in TENSORS.items():
        wanted = (tensor.float() + 1).to(tensor.dtype) if name in firsts else tensor
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].float(), wanted.float()), name
    assert set(done) == set(TENSORS)
    assert (tmp_path / "b.safetensors").stat().st_size == file.stat().st_size


def test_one_tensor_is_read_alone(file):
    for name, tensor in TENSORS.items():
        if name != "b":
            assert torch.equal(read_tensor(file, name).float(), tensor.float())
    assert tensor_shapes(file)["a"] == (10, 7)


def test_a_tensor_that_is_no_floating_point_is_not_changed(file, tmp_path):
    with pytest.raises(DsctlError, match="b is I64, which nothing can be added to"):
        rewrite(file, tmp_path / "b.safetensors", {"b": lambda rows, first: rows}, lambda name: None)
    assert not (tmp_path / "b.safetensors").exists()
