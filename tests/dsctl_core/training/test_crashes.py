"""A run that dies anywhere, in the middle of a save too, is continued to the bit from a state that is whole."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from dsctl_core.errors import DsctlError
from dsctl_core.training.state.folder import fault_of, find_state, state_folders
from tests.dsctl_core.training.runs import train
from tests.dsctl_core.training.test_resume import assert_equal_runs

STEPS = 4


class Power(BaseException):
    """The power is gone: nothing is done any more, not even tidying up."""


class Disk:
    """Counts what changes the disk for good, and does nothing any more from the `last`-th time on."""

    def __init__(self, monkeypatch, last=None):
        self.count, self.last = 0, last
        monkeypatch.setattr(os, "fsync", self.counted(lambda descriptor: None))
        for owner, name in ((Path, "replace"), (Path, "mkdir"), (Path, "unlink"), (shutil, "rmtree")):
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, act):
        def acting(*args, **kwargs):
            self.count += 1
            if self.last is not None and self.count >= self.last:
                raise Power
            return act(*args, **kwargs)

        return acting


def test_power_that_fails_at_any_moment_costs_one_step_at_most(tmp_path, monkeypatch):
    with monkeypatch.context() as patches:
        disk = Disk(patches)
        train(tmp_path / "straight", max_steps=STEPS + 1, save_steps=1)
    assert disk.count > 100
    moments, continued = range(1, disk.count * STEPS // (STEPS + 1), 3), 0
    for last in moments:
        folder = tmp_path / str(last)
        with monkeypatch.context() as patches, pytest.raises(Power):
            Disk(patches, last)
            train(folder, max_steps=STEPS, save_steps=1)
        whole = [step for step, path in state_folders(folder) if fault_of(path) is None]
        if not whole:
            with pytest.raises(DsctlError):
                find_state(folder, "latest")
            continue
        continued += 1
        assert find_state(folder, "latest").step == whole[0]
        assert whole[0] >= len((folder / "metrics.jsonl").read_text().splitlines()) - 1
        with monkeypatch.context() as patches:
            Disk(patches)
            train(folder, max_steps=STEPS + 1, save_steps=1, resume="latest")
        assert_equal_runs(tmp_path / "straight", folder, step=STEPS + 1)
        assert [step for step, _ in state_folders(folder)] == [STEPS + 1, STEPS]
        assert list(folder.rglob("*.tmp")) == []
    assert len(moments) / 2 < continued < len(moments)


def _train(folder, steps, resume):
    os.fsync = lambda descriptor: None  # what a killed process has written outlives it all the same
    train(folder, max_steps=steps, save_steps=1, batch_size=2, resume=resume)


def test_a_run_killed_twenty_times_is_the_run_that_was_not(tmp_path):
    """`kill -9` at random moments, most of them while a step is saved; each time --resume latest goes on."""
    kills, chance = 20, random.Random(5)
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.dsctl_core.training.warmed_up"])
    folder, reached = tmp_path / "killed", [0]
    for kill in range(kills):
        resume = "latest" if reached[-1] else None
        if resume is None:
            shutil.rmtree(folder, ignore_errors=True)
        process = server.Process(target=_train, args=(folder, 100_000, resume))
        process.start()
        until = time.monotonic() + 120
        while kill % 4 and _steps(folder)[0] <= reached[-1] and process.is_alive() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.1))
        assert process.is_alive(), "a run that goes on from a broken state ends"
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        if _steps(folder) != [0]:
            reached.append(find_state(folder, "latest").step)
    assert reached == sorted(reached)
    assert len(set(reached)) > kills // 2
    final = reached[-1] + 1
    train(folder, max_steps=final, save_steps=1, batch_size=2, resume="latest")
    train(tmp_path / "straight", max_steps=final, save_steps=final, batch_size=2)
    assert_equal_runs(tmp_path / "straight", folder, step=final)


def _steps(folder):
    return [step for step, _ in state_folders(folder)] or [0]
