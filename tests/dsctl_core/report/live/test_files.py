"""What the live page reads of a folder: its runs, logs as a terminal shows them, disk use; no link is followed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dsctl_core.errors import DsctlError
from dsctl_core.report.live.files import disk_use, find_samples, log_tails, readable_log
from dsctl_core.report.live.find import find_runs, require_folders
from dsctl_core.report.live.runs import Watched
from dsctl_core.report.live.sections import sections
from tests.dsctl_core.report.live.serving import metrics, write_run


def test_runs_are_found_below_a_folder_and_each_once(tmp_path: Path):
    for name in ("a", "deep/er/b", "a/inside", ".hidden/c", "one/two/three/four/far"):
        write_run(tmp_path / name)
    (tmp_path / "linked").symlink_to(tmp_path / "deep" / "er" / "b")
    found = find_runs([tmp_path, tmp_path / "a"])
    assert [each.name for each in found] == ["a", "deep/er/b"]
    assert [each.name for each in find_runs([tmp_path / "a"])] == ["a"]
    assert len({each.key for each in found}) == 2 and all(each.key.isalnum() for each in found)


@pytest.mark.parametrize(("make", "problem"), [(Path.touch, "is a file, not a folder"), (None, "does not exist")])
def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, make, problem: str):
    if make:
        make(tmp_path / "runs")
    with pytest.raises(DsctlError, match=problem) as caught:
        require_folders([tmp_path / "runs"])
    assert caught.value.hint


def test_a_log_is_shown_as_a_terminal_shows_it():
    bar = b"step 1\rstep 2\rstep 3\r\n"
    colours = b"\x1b[1;31merror\x1b[0m: \x1b]0;title\x07no\x00thing\xff\n"
    assert readable_log(b"cut\n" * 100 + bar + colours).splitlines()[-3:] == ["cut", "step 3", "error: nothing\ufffd"]
    assert len(readable_log(b"line\n" * 100).splitlines()) == 40


def test_logs_are_those_of_the_run_and_no_link_is_followed(tmp_path: Path):
    folder = write_run(tmp_path / "runs" / "a")
    (tmp_path / "secret").write_text("secret")
    (folder / "train.log").write_text("x" * 50_000 + "\nthe end\n")
    (folder / "link.log").symlink_to(tmp_path / "secret")
    (tmp_path / "runs" / "a.log").write_text("beside it")
    (tmp_path / "runs.log").write_text("outside")
    assert log_tails(folder, tmp_path / "runs") == {"a.log": "beside it", "train.log": "the end"}
    assert log_tails(folder, folder) == {"train.log": "the end"}
    (folder / "samples").rename(folder / "real")
    (folder / "samples").symlink_to(folder / "real")
    assert find_samples(folder / "samples") == {}


def test_disk_use_counts_each_kind_without_what_links_lead_to(tmp_path: Path):
    folder = write_run(tmp_path / "a", sampled=())
    for name, size in {"state/step-4/model": 300, "cache/part": 50, "step-4.peft/weights": 7, "samples/x": 2}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"0" * size)
    (tmp_path / "big").write_bytes(b"0" * 10_000)
    (folder / "link").symlink_to(tmp_path / "big")
    other = sum((folder / name).stat().st_size for name in ("run.json", "metrics.jsonl"))
    wanted = {"weights": 1007, "states to resume from": 300, "samples": 2, "cache": 50, "other": other}
    assert disk_use(folder) == wanted


def test_a_run_is_training_as_long_as_it_has_its_lock(tmp_path: Path):
    names = {"training": {"going": True}, "stopped": {}, "finished": {"steps": 8}, "preparing": {"steps": 0}}
    for name, how in names.items():
        write_run(tmp_path / name, **how)
    write_run(tmp_path / "ended", max_steps=None)
    runs = Watched([tmp_path]).runs()
    assert {run.found.name: run.state for run in runs} == {name: name for name in (*names, "ended")}
    assert runs[0].found.name == "training"


def test_a_name_that_is_no_text_and_numbers_that_are_too_large_can_be_shown(tmp_path: Path):
    folder = write_run(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")), steps=3, max_steps=2**62)
    lines = [{"loss": 1e308, "seconds": 1e308}, {"loss": -1e308, "seconds": 1e308}, {"loss": 1e-320}]
    text = "".join(metrics(step, **values) for step, values in enumerate(lines, 4))
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(text + json.dumps({"step": 7, "\ud800": 1, "loss": 1e400}) + "\n")
    runs = Watched([tmp_path]).runs()
    made = sections(runs, [])
    assert json.dumps(made).encode() and "nan" not in made["curves"] and "\ufffd\ufffd" in made["runs"]
