"""A save that would fail fails before the first step, and leaves the folder as it was."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple

import pytest
import torch

from dsctl_core.errors import DsctlError
from dsctl_core.training.callbacks.base import TrainingHook
from dsctl_core.training.output import preflight as rehearsal
from tests.dsctl_core.training.runs import Drawing, train

Usage = namedtuple("Usage", "total used free")


class Counting(Drawing):
    """Counts the samples it is given."""

    calls = 0

    def forward(self, data):
        Counting.calls += 1
        return super().forward(data)


def with_free(monkeypatch, *numbers):
    told = list(numbers)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: Usage(10**12, 0, told.pop(0) if len(told) > 1 else told[0])
    )


def refused(folder, match, **settings):
    Counting.calls = 0
    with pytest.raises(DsctlError, match=match) as caught:
        train(folder, module=Counting(), max_steps=3, **settings)
    assert caught.value.hint
    assert Counting.calls == 0
    return caught.value


def test_too_little_space_is_an_error_with_both_numbers_before_the_first_step(tmp_path, monkeypatch):
    with_free(monkeypatch, 60)
    # four float32 numbers as weights, and in the state once more with two for each of the optimizer's
    refused(tmp_path, "a save of this run takes 64 B, but .* has 60 B free")
    assert list(tmp_path.iterdir()) == []


def test_space_that_an_optimizer_needs_beyond_what_was_expected_is_an_error_at_the_first_step(tmp_path, monkeypatch):
    class Greedy(torch.optim.SGD):
        def step(self, closure=None):
            super().step()
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["history"] = torch.zeros(1000)

    with_free(monkeypatch, 4000)
    with pytest.raises(DsctlError, match=r"takes 8.03 kB"):
        train(tmp_path, max_steps=3, optimizer=lambda p: Greedy(p, lr=0.1), lr_scheduler=None)


def test_a_run_whose_saves_will_not_all_fit_is_told_so(tmp_path, monkeypatch):
    class Heard:
        notes = []

        def note(self, message):
            self.notes.append(message)

        start = advance = finish = lambda *args, **fields: None

    with_free(monkeypatch, 100, 100, 100, 10**9)
    train(tmp_path, max_steps=4, save_steps=1, progress=Heard())
    assert any("all 4 saves of this run" in note for note in Heard.notes)


def test_a_folder_that_cannot_be_made_or_written_is_an_error_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(tmp_path / "file" / "out", "could not be written|is a file")
    refused(tmp_path / "file", "is a file, not a folder")


def test_a_disk_that_takes_no_more_is_found_out_by_writing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(tmp_path, "no space left")
    assert list(tmp_path.iterdir()) == []


def test_a_large_save_is_rehearsed_by_a_probe(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "WHOLE", 10)
    written = []
    monkeypatch.setattr(rehearsal, "_write_probe", written.append)
    train(tmp_path, max_steps=1)
    assert len(written) == 1


def test_a_state_of_a_hook_that_cannot_be_kept_is_an_error_before_the_first_step(tmp_path):
    class Keeping(TrainingHook):
        def state(self):
            return {"lambda": lambda: None}

    refused(tmp_path, "a function at .*lambda, which cannot be written", hooks=[Keeping()])


def test_a_rehearsal_leaves_nothing(tmp_path):
    train(tmp_path, max_steps=1)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "state", "step-1.safetensors"}
