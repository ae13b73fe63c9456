"""States on disk: one is whole or is none; the newest whole one is found; pruning leaves enough of them."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from dsctl_core.errors import DsctlError
from dsctl_core.options.training import TrainingOptions
from dsctl_core.training.plan.plan import accumulation_for
from dsctl_core.training.state.folder import (
    SavedState,
    clear_leftovers,
    fault_of,
    find_state,
    find_state_if_any,
    locked,
    new_state,
    prune_states,
    state_folders,
)


def make(output, *steps):
    for step in steps:
        with new_state(output, step) as folder:
            (folder / "weights.safetensors").write_bytes(os.urandom(1000))
            about = {"step": step, "epoch": 0, "step_in_epoch": step, "settings": {"samples_per_step": 1}}
            (folder / "state.json").write_text(json.dumps(about))
    return [output / "state" / f"step-{step}" for step in steps]


def steps_of(output):
    return [step for step, _ in state_folders(output)]


def test_the_newest_state_is_the_one_of_the_highest_step(tmp_path):
    make(tmp_path, 100, 9, 20)
    assert steps_of(tmp_path) == [100, 20, 9]
    assert find_state(tmp_path, "latest").step == 100


def cut(folder):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder):
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)


def change_manifest(folder, name, entry):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest))


DAMAGE = {
    "cut off": cut,
    "a bit flipped": flip,
    "a file missing": lambda folder: (folder / "state.json").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: (folder / "manifest.json").write_text('{"format": 1, "fi'),
    "a manifest of no files": lambda folder: (folder / "manifest.json").write_text('{"format": 1, "files": {}}'),
    "a list of files": lambda folder: (folder / "manifest.json").write_text('{"format": 1, "files": []}'),
    "a manifest without files": lambda folder: (folder / "manifest.json").write_text('{"format": 1}'),
    "a file that is not listed": lambda folder: (folder / "hooks.safetensors").write_bytes(b"x"),
    "sizes as text": lambda folder: change_manifest(folder, "weights.safetensors", {"bytes": "1000", "sha256": "x"}),
    "a file outside": lambda folder: change_manifest(folder, "../../a.json", {"bytes": 1, "sha256": "x"}),
    "another format": lambda folder: (folder / "manifest.json").write_text('{"format": 2, "files": {}}'),
    "nothing in it": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_state_that_is_not_whole_is_never_chosen_and_told_of(tmp_path, damage):
    *_, newest = make(tmp_path, 1, 2, 3)
    assert fault_of(newest) is None
    damage(newest)
    assert fault_of(newest) is not None
    told = []
    assert find_state(tmp_path, "latest", told.append).step == 2
    assert len(told) == 1
    assert "step-3 is not whole" in told[0]
    with pytest.raises(DsctlError, match="step-3 cannot be resumed from"):
        find_state(tmp_path, newest)


def test_no_whole_state_is_an_error(tmp_path):
    for folder in make(tmp_path, 1, 2):
        cut(folder)
    with pytest.raises(DsctlError, match="no state in .* is whole"):
        find_state(tmp_path, "latest")


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_pruning_keeps_the_newest_whole_states_and_never_fewer_than_the_limit(tmp_path, limit):
    folders = make(tmp_path, 1, 2, 3, 4, 5)
    cut(folders[4])
    cut(folders[2])
    prune_states(tmp_path, limit)
    assert steps_of(tmp_path) == [4, 2, 1][:limit]
    assert all(fault_of(folder) is None for _, folder in state_folders(tmp_path))


def test_what_fails_halfway_leaves_the_states_as_they_were(tmp_path):
    make(tmp_path, 1)
    with pytest.raises(RuntimeError), new_state(tmp_path, 2) as folder:
        (folder / "weights.safetensors").write_bytes(b"half")
        raise RuntimeError
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-1"]


def test_what_a_kill_leaves_is_cleared_and_nothing_else(tmp_path):
    make(tmp_path, 1)
    (tmp_path / "state" / ".step-2.0123abcd.tmp").mkdir()
    (tmp_path / "state" / ".step-2.0123abcd.tmp" / "weights.safetensors").write_bytes(b"half")
    (tmp_path / ".step-2.safetensors.0123abcd.tmp").write_bytes(b"half")
    (tmp_path / ".step-2.dit.safetensors.0123abcd.tmp").mkdir()
    (tmp_path / ".step-2.dit.safetensors.0123abcd.tmp" / ".tmp0lF0sd").write_bytes(b"half")
    (tmp_path / "samples").mkdir()
    for name in (".step-2-0.png.0123abcd.tmp", ".mine-2-0.png.0123abcd.tmp"):
        (tmp_path / "samples" / name).write_bytes(b"half")
    mine = {"step-1.safetensors", ".editor.tmp", ".step-2.safetensors.tmp", ".notes.json.0123abcd.tmp"}
    for name in mine:
        (tmp_path / name).write_bytes(b"mine")
    clear_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"state", "samples", *mine}
    assert [path.name for path in (tmp_path / "samples").iterdir()] == [".mine-2-0.png.0123abcd.tmp"]
    assert steps_of(tmp_path) == [1]
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-1"]


def _hold(output, held, done):
    with locked(output):
        held.set()
        done.wait(60)


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    make(tmp_path, 1)
    spawn = multiprocessing.get_context("spawn")
    held, done = spawn.Event(), spawn.Event()
    other = spawn.Process(target=_hold, args=(tmp_path, held, done))
    other.start()
    try:
        assert held.wait(120)
        with pytest.raises(DsctlError, match="another process is training in"), locked(tmp_path):
            pass
    finally:
        done.set()
        other.join(60)
    with locked(tmp_path):  # free again
        pass


@pytest.mark.parametrize(
    ("processes", "samples", "expected"),
    [(1, 24, 6), (2, 24, 3), (3, 24, None), (4, 24, None), (6, 24, 1), (12, 24, None), (1, 4, 1)],
)
def test_batches_a_step_follow_the_number_of_processes(processes, samples, expected):
    options = TrainingOptions(batch_size=4, gradient_accumulation_steps=2)
    about = {"settings": {"samples_per_step": samples}, "asked": {"batch_size": 4, "gradient_accumulation_steps": 2}}
    assert accumulation_for(SavedState(Path("x"), about), options, processes) == expected
    for asked in ({}, {"batch_size": 2, "gradient_accumulation_steps": 2}, None):  # another command, or an older state
        assert accumulation_for(SavedState(Path("x"), {**about, "asked": asked}), options, processes) is None


def test_auto_begins_anew_only_where_there_is_no_state(tmp_path):
    assert find_state_if_any(tmp_path, "auto") is None
    (tmp_path / "state" / "step-3").mkdir(parents=True)
    with pytest.raises(DsctlError, match="no state in .* is whole"):
        find_state_if_any(tmp_path, "auto")
    with pytest.raises(DsctlError, match="does not exist"):
        find_state_if_any(tmp_path / "other", "latest")
