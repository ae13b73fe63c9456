"""A state that is written while training goes on is the one that is written at once, and counts when it is whole."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dsctl_core.errors import DsctlError
from dsctl_core.training.loop.loop import _Loop
from dsctl_core.training.state import snapshot
from dsctl_core.training.state.folder import fault_of, find_state, state_folders
from tests.dsctl_core.training.runs import metrics, train
from tests.dsctl_core.training.test_resume import assert_equal_runs

LIMIT = 30  # seconds to wait for what must happen


def write_in_background(change: Any) -> None:
    """Write states in a thread, as with a GPU."""
    begin = snapshot.Snapshots.__init__

    def beginning(self: snapshot.Snapshots, *args: Any) -> None:
        begin(self, *args)
        self.in_background = True

    change.setattr(snapshot.Snapshots, "__init__", beginning)


def test_training_goes_on_while_a_state_is_written_and_nothing_else_changes(tmp_path, monkeypatch):
    train(tmp_path / "at_once", max_steps=8, save_steps=2)
    write_in_background(monkeypatch)
    write, goes_on, steps_meanwhile = snapshot.write_json, threading.Event(), list[int]()

    def slow(path: Path, value: dict[str, Any]) -> None:
        assert threading.current_thread().name == "dsctl-state"
        if value["step"] == 4:
            assert goes_on.wait(LIMIT)
            steps_meanwhile.append(len(metrics(tmp_path / "meanwhile")))
            assert find_state(tmp_path / "meanwhile", "latest").step == 2
        write(path, value)

    end = _Loop._end_step

    def ending(self: _Loop, *args: Any) -> None:
        end(self, *args)
        if self.run.step == 5:
            goes_on.set()

    monkeypatch.setattr(snapshot, "write_json", slow)
    monkeypatch.setattr(_Loop, "_end_step", ending)
    train(tmp_path / "meanwhile", max_steps=8, save_steps=2)
    assert steps_meanwhile[0] >= 5
    assert_equal_runs(tmp_path / "at_once", tmp_path / "meanwhile", step=8)
    one, other = (tmp_path / name / "state" / "step-8" for name in ("at_once", "meanwhile"))
    assert sorted(each.name for each in one.iterdir()) == sorted(each.name for each in other.iterdir())
    for file in one.glob("*.safetensors"):
        first, second = load_file(file), load_file(other / file.name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), file.name
    assert [step for step, _ in state_folders(tmp_path / "meanwhile")] == [8, 6]


def test_a_state_that_cannot_be_written_ends_the_run_at_its_next_step(tmp_path, monkeypatch):
    write_in_background(monkeypatch)
    write, end, failed = snapshot.write_json, _Loop._end_step, threading.Event()

    def failing(path: Path, value: dict[str, Any]) -> None:
        if value["step"] == 4:
            failed.set()
            raise OSError(28, "No space left on device")
        write(path, value)

    def ending(self: _Loop, *args: Any) -> None:
        if self.run.step == 4:
            assert failed.wait(LIMIT)
            self.snapshots.writing.wait(LIMIT)
        end(self, *args)

    monkeypatch.setattr(snapshot, "write_json", failing)
    monkeypatch.setattr(_Loop, "_end_step", ending)
    with pytest.raises(DsctlError, match="step-4 could not be written: no space left"):
        train(tmp_path, max_steps=100, save_steps=2)
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4]
    assert [(step, fault_of(path)) for step, path in state_folders(tmp_path)] == [(2, None)]


def _train_and_hang(folder: Path, steps: int) -> None:
    change = pytest.MonkeyPatch()
    write_in_background(change)
    os.fsync = lambda descriptor: None
    write = snapshot.write_json

    def hanging(path: Path, value: dict[str, Any]) -> None:
        if value["step"] == steps:
            (folder / "hangs").touch()
            time.sleep(LIMIT)
        write(path, value)

    change.setattr(snapshot, "write_json", hanging)
    train(folder, max_steps=100_000, save_steps=2)


def test_a_run_killed_while_a_state_is_written_goes_on_from_the_one_before(tmp_path):
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.dsctl_core.training.warmed_up"])
    folder, until = tmp_path / "killed", time.monotonic() + 120
    process = server.Process(target=_train_and_hang, args=(folder, 4))
    process.start()
    while not (folder / "hangs").exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.join()
    (folder / "hangs").unlink()
    assert len(list((folder / "state").glob(".step-4.*.tmp"))) == 1
    assert find_state(folder, "latest").step == 2
    train(folder, max_steps=8, save_steps=2, resume="latest")
    train(tmp_path / "straight", max_steps=8, save_steps=2)
    assert_equal_runs(tmp_path / "straight", folder, step=8)
    assert list(folder.rglob("*.tmp")) == []
