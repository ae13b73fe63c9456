"""Weights that were found to be usable are not looked through again, until one of their files has changed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dsctl_core.checkpoint import finite, known_weights
from dsctl_core.checkpoint.finite import refuse_unusable_weights
from dsctl_core.errors import DsctlError
from dsctl_core.files import safetensors


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weight file that was written long ago, as far as anyone asks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(safetensors, "SETTLED", -1.0)
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.ones(3, 4), "bias": torch.ones(3)}, path)
    return path


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has an entry for each time that weights were looked through."""
    calls, real = [], finite.find_not_finite
    monkeypatch.setattr(finite, "find_not_finite", lambda tensors: calls.append(1) or real(tensors))
    return calls


def load(file: Path, dtype: torch.dtype = torch.float32) -> None:
    model = nn.Linear(4, 3)
    model.load_state_dict(load_file(file))
    refuse_unusable_weights(model.to(dtype), [file], file.parent)


def test_weights_are_looked_through_once_in_each_dtype(file: Path, looked: list[int]) -> None:
    load(file)
    load(file)
    assert len(looked) == 1
    load(file, torch.bfloat16)
    assert len(looked) == 2


def test_a_file_that_changed_is_looked_through_even_with_its_old_size_and_time(file: Path, looked: list[int]) -> None:
    load(file)
    before = file.stat()
    save_file({"weight": torch.full((3, 4), float("nan")), "bias": torch.ones(3)}, file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    for _ in range(2):  # what was refused is refused again
        with pytest.raises(DsctlError, match="no finite number"):
            load(file)
    assert len(looked) == 3


def test_a_file_that_was_just_written_is_not_remembered(
    file: Path, looked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors, "SETTLED", 3600.0)
    load(file)
    load(file)
    assert len(looked) == 2


def test_a_cache_folder_that_cannot_be_written_changes_nothing(file: Path, looked: list[int], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in its place")
    load(file)
    load(file)
    assert len(looked) == 2


def test_of_too_many_sets_those_that_were_not_asked_for_longest_are_forgotten(
    file: Path, looked: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_weights, "MOST", 2)
    folder = tmp_path / "cache" / "dsctl" / "weights"
    for age, dtype in ((30, torch.float32), (20, torch.bfloat16), (10, torch.float16)):
        load(file, dtype)
        newest = max(folder.iterdir(), key=lambda each: each.stat().st_mtime)
        os.utime(newest, (newest.stat().st_mtime - age,) * 2)
        assert stat.S_ISREG(newest.stat().st_mode)
    assert len(list(folder.iterdir())) == 2
    load(file, torch.float16)
    assert len(looked) == 3
    load(file, torch.float32)
    assert len(looked) == 4
