"""A cache goes on where it stopped, and follows its dataset: only what changed is encoded."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

from dsctl_core.cache.folder import WORKERS
from dsctl_core.cache.local_output import FolderOutput
from dsctl_core.cache.reader import CachedDataset
from dsctl_core.cache.verify import find_problems
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError
from dsctl_core.options import CacheOptions, TrainOptions
from dsctl_core.stages.encode import EncodingStopped
from dsctl_core.training.loop.signals import TrainingStopped
from tests.conftest import REPOSITORY
from tests.dsctl_core.cache import killing
from tests.dsctl_core.cache.conftest import PROMPTS, write_rows


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_kills_at_random_points_leave_nothing_that_a_rerun_does_not_make_whole(python, model, pictures, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for picture in pictures.glob("*.png"):
        (data / picture.name).symlink_to(picture)
    write_rows(data, [f"picture {n} of many" for n in range(24)])
    command = [python, killing.__file__, model, data, tmp_path / "caches"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "caches" / "told.json").read_text())
    assert told["equal"] == [1] * killing.POINTS
    assert told["problems"] == [0] * killing.POINTS
    # The kills came at different points of the work, some in its midst.
    assert told["shards"] == 12
    assert len(set(told["shards_at_the_kill"])) > 2


SOON = 1e-9  # hours: a command does the least that it may


@pytest.mark.parametrize("shared", [False, True])
def test_commands_whose_time_is_up_keep_what_they_encoded_until_all_is_done(fill, data, tmp_path, shared):
    write_rows(data, PROMPTS[:2])
    whole = fill(output_path=tmp_path / "straight")
    for _ in range(whole.encoded - 1):
        with pytest.raises(EncodingStopped, match="1 input was encoded, which is kept") as stopped:
            fill(shared=shared, max_hours=SOON)
        assert stopped.value.exit_code == 75
        assert not (tmp_path / "filled" / WORKERS).exists()
    assert fill(shared=shared, max_hours=SOON).encoded == 1
    assert fill().encoded == 0
    one, other = CachedDataset(tmp_path / "straight"), CachedDataset(tmp_path / "filled")
    assert [each.key for each in one.entries] == [each.key for each in other.entries]
    for entry in one.entries:
        for name, value in other.sample(entry).items():
            expected = one.sample(entry)[name]
            assert torch.equal(value, expected) if isinstance(value, torch.Tensor) else value == expected, name
    assert list(find_problems(tmp_path / "filled")) == []


def test_a_run_whose_time_is_up_while_it_encodes_goes_on_by_the_same_command(model, data, tmp_path):
    write_rows(data, PROMPTS[:2])
    base = {"model": str(model), "dataset_base_path": data, "dataset_repeat": 2, "lora_rank": 2, "max_steps": 3}

    def run(name: str, **more) -> list[float]:
        train(TrainOptions(**base, device="cpu", output_path=tmp_path / name, resume="auto", **more))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    for error in [EncodingStopped] * 3 + [TrainingStopped] * 2:  # the last input is encoded with the first step
        with pytest.raises(error) as stopped:
            run("stopped", max_hours=SOON)
        assert stopped.value.exit_code == 75
    assert run("stopped", max_hours=SOON) == run("straight")


def test_a_second_run_encodes_nothing_and_changes_nothing(fill, tmp_path):
    first = fill()
    before = content(tmp_path / "filled")
    assert first.encoded == len(PROMPTS) + len(set(PROMPTS))
    assert fill().encoded == 0
    assert content(tmp_path / "filled") == before


def test_a_second_run_with_nothing_to_encode_loads_no_component(fill, monkeypatch):
    fill()
    monkeypatch.setattr("dsctl_core.checkpoint.load.load_component", lambda *_: pytest.fail("a component was loaded"))
    assert fill().encoded == 0


def test_the_components_of_the_second_stage_are_never_loaded(fill, monkeypatch):
    from dsctl_core.checkpoint import load

    loaded, real = [], load.load_component
    monkeypatch.setattr(load, "load_component", lambda c, *rest: loaded.append(c.name) or real(c, *rest))
    fill()
    assert sorted(loaded) == ["text_encoder", "vae"]


def test_a_changed_caption_and_a_changed_picture_are_encoded_alone(fill, data, tmp_path):
    fill()
    write_rows(data, [*PROMPTS[:4], "another caption", PROMPTS[5]])
    assert fill().encoded == 1
    Image.effect_noise((48, 32), 77).convert("RGB").save(data / "2.png")
    assert fill().encoded == 1
    assert list_problems(tmp_path / "filled") == {"left over": 0}


def list_problems(folder: Path) -> dict[str, int]:
    kinds = [problem.kind for problem in find_problems(folder)]
    return {"left over": kinds.count("left over"), **{kind: kinds.count(kind) for kind in kinds if kind != "left over"}}


def test_rows_that_are_gone_are_not_trained_on_and_rows_that_are_new_are(fill, data, tmp_path):
    fill()
    write_rows(data, [*PROMPTS[:2], "", *PROMPTS[3:], "a new one"])
    assert fill().encoded == 2
    dataset = CachedDataset(tmp_path / "filled", repeat=3)
    assert [entry.row for entry in dataset.entries] == list(range(6))
    assert len(dataset) == 18


def test_nothing_is_deleted_without_prune_and_with_it_only_what_nobody_needs(fill, data, tmp_path):
    fill()
    (tmp_path / "filled" / "notes.txt").write_text("mine")
    shards = set(content(tmp_path / "filled" / "shards"))
    write_rows(data, PROMPTS[:2])
    fill()
    assert set(content(tmp_path / "filled" / "shards")) == shards
    result = fill(prune=True)
    assert result.encoded == 0
    assert result.freed_bytes > 0
    assert (
        sum(len(data) for data in content(tmp_path / "filled" / "shards").values()) == result.manifest.bytes["shards"]
    )
    assert (tmp_path / "filled" / "notes.txt").read_text() == "mine"
    assert list(find_problems(tmp_path / "filled")) == []
    write_rows(data, PROMPTS)
    assert fill().encoded == 4 + 3  # pictures, and prompts: one of the two prompts comes twice


def test_prune_removes_only_shards_that_prove_to_be_of_the_cache(fill, data, tmp_path):
    fill()
    shards, old = tmp_path / "filled" / "shards", set(content(tmp_path / "filled" / "shards"))
    mine = {"mine.safetensors", ".editor.tmp", f"{'0' * 64}.safetensors", ".0.safetensors.0123abcd.tmp", "notes.txt"}
    for name in mine:
        (shards / name).write_bytes(b"mine")
    (tmp_path / "filled" / ".mine.tmp").write_bytes(b"mine")
    write_rows(data, PROMPTS[:2])
    assert fill(prune=True).freed_bytes > 0
    left = set(content(shards))
    assert mine < left
    assert old - left
    assert (tmp_path / "filled" / ".mine.tmp").read_bytes() == b"mine"


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_prune_without_a_whole_manifest_removes_nothing_and_a_run_without_it_mends_that(fill, tmp_path, how):
    fill()
    manifest = tmp_path / "filled" / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-20]) if how == "damaged" else manifest.unlink()
    before = content(tmp_path / "filled")
    with pytest.raises(DsctlError, match=f"--prune removes nothing from .*{how}") as caught:
        fill(prune=True)
    assert "without --prune" in (caught.value.hint or "")
    assert content(tmp_path / "filled") == before
    fill()
    assert manifest.read_bytes() == whole
    fill(prune=True)


@pytest.mark.parametrize("name", ["run.json", "mine.txt", "shards/mine.txt", "shards/a.safetensors", "manifest.json"])
def test_a_folder_with_anything_of_others_and_no_manifest_is_no_cache(fill, tmp_path, name):
    (tmp_path / "filled" / "shards").mkdir(parents=True)
    (tmp_path / "filled" / name).write_text('{"name": "an app"}')
    before = content(tmp_path / "filled")
    with pytest.raises(DsctlError, match=f"`dsctl cache` did not write .*{name}"):
        fill()
    assert content(tmp_path / "filled") == before


def test_a_cache_is_not_written_through_a_link(fill, tmp_path):
    fill()
    (tmp_path / "filled" / "shards").rename(tmp_path / "elsewhere")
    (tmp_path / "filled" / "shards").symlink_to(tmp_path / "elsewhere")
    before = content(tmp_path / "elsewhere")
    with pytest.raises(DsctlError, match="did not write .*shards"):
        fill(prune=True)
    assert content(tmp_path / "elsewhere") == before


def test_what_is_damaged_is_encoded_again_and_nothing_else(fill, tmp_path):
    fill()
    before = content(tmp_path / "filled")
    shard = max((tmp_path / "filled" / "shards").iterdir(), key=lambda path: path.stat().st_size)
    content_of_it = shard.read_bytes()
    shard.write_bytes(content_of_it[:-1] + bytes([content_of_it[-1] ^ 1]))
    assert {problem.kind for problem in find_problems(tmp_path / "filled")} == {"shard"}
    assert fill().encoded in (len(PROMPTS), len(set(PROMPTS)))
    assert content(tmp_path / "filled") == before


def test_a_full_disk_is_named_and_what_was_there_stays_and_a_rerun_goes_on(fill, data, tmp_path):
    fill()
    before = content(tmp_path / "filled")
    write_rows(data, [*PROMPTS, "a new one"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(DsctlError, match="could not be written: no space left") as caught:
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.hint
    assert content(tmp_path / "filled") == before
    assert CachedDataset(tmp_path / "filled")[0]
    assert fill().encoded == 2
    assert list(find_problems(tmp_path / "filled")) == []


def test_another_command_that_writes_to_the_folder_is_refused(fill, tmp_path):
    from dsctl_core.cache.folder import locked

    fill()
    with locked(tmp_path / "filled"), pytest.raises(DsctlError, match="another command is writing"):
        fill()


def test_two_processes_share_the_work_without_overlap_or_repeats(model, data, tmp_path, monkeypatch):
    from dsctl_core.stages import encode
    from dsctl_core.training.plan.encode import EncodePlan

    monkeypatch.setattr(encode, "PARTS_IN_A_SHARD", 2)
    real, encoded = EncodePlan.settings, []

    def fill(process: int, processes: int) -> None:
        share = {"process": process, "processes": processes, "skip_bad": True}
        monkeypatch.setattr(EncodePlan, "settings", lambda _: encode.EncodeSettings(**share))
        options = CacheOptions(model=str(model), dataset_base_path=data, output_path=tmp_path / "both", device="cpu")
        encoded.append(make_cache(options).encoded)

    single = make_cache(
        CacheOptions(model=str(model), dataset_base_path=data, output_path=tmp_path / "one", device="cpu")
    )
    monkeypatch.setattr(FolderOutput, "manifest", lambda self: None)
    monkeypatch.setattr(encode, "finish", lambda *_: 0)
    fill(1, 2)
    fill(0, 2)
    monkeypatch.undo()
    assert real is EncodePlan.settings
    assert sum(encoded) == single.encoded
    assert min(encoded) > 0
    monkeypatch.setattr(encode, "PARTS_IN_A_SHARD", 2)
    last = make_cache(
        CacheOptions(model=str(model), dataset_base_path=data, output_path=tmp_path / "both", device="cpu")
    )
    assert last.encoded == 0
    assert list(find_problems(tmp_path / "both")) == []
