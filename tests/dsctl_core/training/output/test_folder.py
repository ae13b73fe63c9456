"""The output folder of a run: what is in its way, and what an earlier run has left that is not."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
from PIL import Image

from dsctl_core.errors import DsctlError
from dsctl_core.files.png import write_png
from dsctl_core.media.clip import Clip
from dsctl_core.media.clip_file import write_clip
from dsctl_core.training.output.folder import claim, refuse_used
from dsctl_core.training.state.folder import locked
from dsctl_core.version import __version__

ABOUT = {"command": "train", "versions": {"dsctl": __version__}, "options": {}}
METRICS = '{"step": 1, "loss": 0.5}\n{"step": 2, "lo'
LEFT = {
    "run.json": json.dumps(ABOUT),
    "metrics.jsonl": METRICS,
    "skipped.jsonl": '{"problem": "a", "hint": "b", "kind": "c"}\n',
    "trackers.json": '{"id": "0"}',
    "metrics.csv": "step,loss,lr,grad_norm,seconds,samples_per_second,peak_memory_bytes,validation_loss\n",
}


def leave(folder: Path, *names: str) -> None:
    """Leave in `folder` what a run leaves that failed before its first checkpoint."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text(LEFT[name])
    (folder / "samples").mkdir()
    about = {"step": 0, "dsctl_version": __version__}
    write_png(folder / "samples" / "step-0-1.png", Image.new("RGB", (8, 8)), about)
    write_clip(folder / "samples" / "step-0-2.mp4", Clip((Image.new("RGB", (8, 8)),) * 2, 8), about)
    (folder / ".run.json.0123abcd.tmp").write_text("half")


@pytest.mark.parametrize("names", [tuple(LEFT), ("metrics.jsonl",), ("run.json",), ()])
def test_what_a_run_without_a_checkpoint_has_left_is_cleared_and_nothing_else(tmp_path, names):
    folder = tmp_path / "out"
    leave(folder, *names)
    mine = {"log.txt", "samples/mine.png", ".editor.tmp", "run.toml"}
    for name in mine:
        (folder / name).write_text("mine")
    assert claim(folder) == []
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == mine


@pytest.mark.parametrize(
    "name", ["step-1.safetensors", "step-1.ema.safetensors", "step-1.dit.safetensors", "step-1.peft", "state/step-1"]
)
def test_a_run_with_a_checkpoint_or_a_state_is_kept(tmp_path, name):
    folder = tmp_path / "out"
    leave(folder, *LEFT)
    (folder / name).mkdir(parents=True)
    before = sorted(folder.rglob("*"))
    with pytest.raises(DsctlError, match=r"already holds a run \(run.json\)"):
        claim(folder)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.json", "{}"),
        ("run.json", '{"command": "train", "script": "theirs"}'),
        ("run.json", "no JSON"),
        ("metrics.jsonl", '{"epoch": 1}\n'),
        ("metrics.jsonl", "[1]\n"),
        ("skipped.jsonl", '{"row": 1}\n'),
        ("trackers.json", '{"id": 1, "more": 2}'),
        ("metrics.csv", "step,loss\n"),
        ("samples/step-1-1.png", "theirs"),
        ("samples", "a file"),
        ("state", "a file"),
    ],
)
def test_a_file_of_others_under_a_name_that_a_run_writes_is_refused(tmp_path, name, text):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(DsctlError, match=f"{name} is there already, and no run of dsctl wrote it"):
        refuse_used(tmp_path)


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "state", "samples"])
def test_a_link_under_a_name_that_a_run_writes_is_refused(tmp_path, name):
    (tmp_path / "out").mkdir()
    for target in (tmp_path / "nowhere", tmp_path):
        (tmp_path / "out" / name).symlink_to(target)
        with pytest.raises(DsctlError, match="no run of dsctl wrote it"):
            refuse_used(tmp_path / "out")
        (tmp_path / "out" / name).unlink()


def test_a_folder_with_a_cache_is_no_folder_for_a_run(tmp_path):
    (tmp_path / "shards").mkdir()
    with pytest.raises(DsctlError, match="holds a cache, not a run"):
        refuse_used(tmp_path)


def _train(folder, held, done):
    with locked(folder):
        held.set()
        done.wait(60)


def test_a_run_that_is_going_on_is_not_cleared_before_its_first_checkpoint(tmp_path):
    folder = tmp_path / "out"
    leave(folder, *LEFT)
    spawn = multiprocessing.get_context("spawn")
    held, done = spawn.Event(), spawn.Event()
    other = spawn.Process(target=_train, args=(folder, held, done))
    other.start()
    try:
        assert held.wait(120)
        with pytest.raises(DsctlError, match="another process is training in"):
            claim(folder)
        assert json.loads((folder / "run.json").read_text()) == ABOUT
    finally:
        done.set()
        other.join(60)
    assert claim(folder) == []
