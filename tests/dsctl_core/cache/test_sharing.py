"""Commands that share the work on a cache make the one that a single command makes, whichever of them die."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from dsctl_core.cache.folder import WORKERS
from dsctl_core.commands.cache import make_cache
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files import leases
from dsctl_core.files.leases import Worker
from dsctl_core.options import CacheOptions
from dsctl_core.stages import encode, share
from tests.conftest import REPOSITORY
from tests.dsctl_core.cache import sharing
from tests.dsctl_core.cache.conftest import write_rows
from tests.dsctl_core.cache.killing import content
from tests.s3_server import Fault

WORKERS_AT_ONCE, KILLS_OF_EACH = 3, {"folder": 3, "s3": 1, "gs": 1}


@pytest.mark.parametrize("where", ["folder", "s3", "gs"])
def test_workers_that_are_killed_at_random_leave_the_cache_that_one_worker_makes(
    python, model, pictures, tmp_path, where, request
):
    data = tmp_path / "data"
    data.mkdir()
    for picture in pictures.glob("*.png"):
        (data / picture.name).symlink_to(picture)
    damaged = data / "7.png"
    damaged.unlink()
    damaged.write_bytes((pictures / "7.png").read_bytes()[:900])
    write_rows(data, [f"picture {n} of many" for n in range(24)])
    command = [python, sharing.__file__, model, data, tmp_path, str(WORKERS_AT_ONCE), str(KILLS_OF_EACH[where])]
    if where != "folder":
        server = request.getfixturevalue(where)
        server.make_bucket(tmp_path.name.replace("_", "-"))
        server.faults += [
            Fault("PUT", status=503, times=3),
            Fault("PUT", wait=0.5, times=5),
            Fault("GET", cut_after=9, times=2),
        ]
        command.append(f"{where}://{tmp_path.name.replace('_', '-')}/cache")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["codes"] == [0] * WORKERS_AT_ONCE, done.stderr
    assert told["differs"] == []
    assert told["problems"] == []
    assert told["names"] == ["index.json", "manifest.json", "shards", "skipped.jsonl"]  # nothing of the workers is left
    assert told["kills"] > 0
    assert any(0 < count < told["inputs"] for count in told["at_kills"])
    assert told["skipped"] == [sharing.BAD, 7]  # what one worker could not encode, the others know
    assert told["inputs"] == 2 * (24 - 2)
    assert told["inputs"] <= told["encoded"]
    assert told["most_often"] <= 1 + told["kills"]


def test_a_worker_alone_makes_the_cache_that_a_plain_command_makes(fill, tmp_path):
    fill()
    shared = fill(output_path=tmp_path / "shared", shared=True)
    assert content(tmp_path / "shared") == content(tmp_path / "filled")
    assert shared.encoded > 0
    assert not (tmp_path / "shared" / WORKERS).exists()
    assert fill(output_path=tmp_path / "shared", shared=True).encoded == 0
    assert not (tmp_path / "shared" / WORKERS).exists()


def test_the_last_worker_removes_what_one_that_was_killed_meanwhile_had_begun_to_write(fill, tmp_path, monkeypatch):
    begun, real = tmp_path / "filled" / "shards" / f".{'0' * 64}.safetensors.0123abcd.tmp", encode.make_part
    monkeypatch.setattr(encode, "make_part", lambda *given: begun.touch() or real(*given))
    fill(shared=True)
    assert not begun.exists()


def test_a_damaged_shard_is_made_again_by_workers_too(fill, tmp_path):
    fill()
    before = content(tmp_path / "filled")
    shard = sorted((tmp_path / "filled" / "shards").iterdir())[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert fill(shared=True).encoded > 0
    assert content(tmp_path / "filled") == before


def test_a_command_that_shares_nothing_is_refused_beside_workers_and_after_dead_ones_is_not(fill, tmp_path):
    folder = tmp_path / "filled" / WORKERS / ("a" * 16)
    fill()
    folder.parent.mkdir()
    with Worker(folder), pytest.raises(DsctlError, match="another command is writing to"):
        fill()
    # What a worker of another machine has left that is not heard of any more
    folder.mkdir(parents=True, exist_ok=True)
    left = folder / f"b2{leases.WORKER}"
    left.write_text(json.dumps({"machine": "another", "pid": 1, "since": 1.0}))
    os.utime(left, (1, 1))
    (folder / "c3.bad").write_text("{}")
    (folder / ".d4.bad.0123abcd.tmp").write_text("{")
    fill()
    assert not (tmp_path / "filled" / WORKERS).exists()


def test_workers_of_another_dataset_are_refused(fill, data, tmp_path, monkeypatch):
    monkeypatch.setattr(share, "JOINING", 0.1)
    fill()
    (tmp_path / "filled" / WORKERS).mkdir()
    other = Worker(tmp_path / "filled" / WORKERS / ("a" * 16))
    with other, pytest.raises(DsctlError, match="another command is writing to"):
        fill(shared=True)


def test_an_error_of_a_worker_gives_its_leases_back(fill, data, tmp_path):
    (data / "3.png").write_bytes((data / "3.png").read_bytes()[:300])
    with pytest.raises(DsctlError, match=r"3\.png is damaged or cut off"):
        fill(shared=True)
    assert not (tmp_path / "filled" / WORKERS).exists()
    skipping = fill(shared=True, on_bad_sample="skip")
    assert [each["row"] for each in skipping.manifest.skipped] == [3]


def test_pruning_is_left_to_a_command_that_shares_nothing(model, data, tmp_path):
    options = {"model": str(model), "dataset_base_path": data, "output_path": tmp_path / "c"}
    with pytest.raises(UsageError, match="--prune has no effect with --shared"):
        make_cache(CacheOptions(**options, shared=True, prune=True))
