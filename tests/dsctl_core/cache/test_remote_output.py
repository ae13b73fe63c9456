"""A cache is written at an address: whole or not at all, that of a folder to the byte, beside nothing of others."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from dsctl_core.cache import remote_output
from dsctl_core.cache.reader import CachedDataset
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.options import CacheOptions, TrainOptions
from dsctl_core.remote import local, store
from dsctl_core.remote.errors import RemoteError, RemoteUnreachable
from dsctl_core.remote.retry import Patience
from dsctl_core.remote.store import Remote
from dsctl_core.stages import encode
from tests.dsctl_core.cache.conftest import PROMPTS, write_rows
from tests.dsctl_core.cache.killing import content
from tests.s3_server import Fault


@pytest.fixture
def address(server, tmp_path, monkeypatch) -> str:
    """An address in an empty bucket; shards have two parts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.setattr(store, "Patience", lambda: Patience(tries=4, first_wait=0.01, timeout=2))
    monkeypatch.setattr(encode, "PARTS_IN_A_SHARD", 2)
    bucket = f"written-{uuid.uuid4()}"
    server.make_bucket(bucket)
    server.requests.clear()
    return f"{server.scheme}://{bucket}/of"


def there(address: str) -> dict[str, bytes]:
    remote = Remote(address)
    return {entry.name: remote.read(entry) for entry in remote.list()}


def put(server) -> list[str]:
    """Return the names that were written, in order, without those by which commands keep out of one another's way."""
    paths = (request.partition(" /")[2].split("?")[0] for request, _ in server.requests if request.startswith("PUT"))
    return [path.partition("/of/")[2] for path in paths if "/of/" in path and ".workers" not in path]


def test_a_cache_that_is_written_through_faults_is_that_of_a_folder_and_its_manifest_comes_last(
    server, address, fill, tmp_path
):
    fill()
    largest = max(path.stat().st_size for path in (tmp_path / "filled" / "shards").iterdir())
    server.faults += [
        Fault("PUT", status=503, times=1),
        Fault("safetensors", lose_answer=True, times=2),
        Fault("manifest.json", status=500, times=1),
        Fault("manifest.json", lose_answer=True, times=1),
    ]
    made = fill(output_path=address, remote_cache_gb=3.5 * largest / 1e9)
    assert there(address) == content(tmp_path / "filled")
    copies = local.local_copies().folder.glob("*.safetensors")
    assert sum(path.stat().st_size for path in copies) <= 3.5 * largest
    names = list(dict.fromkeys(put(server)))
    assert len(names) > 6
    assert names[-2:] == ["index.json", "manifest.json"]
    assert made.encoded == len(PROMPTS) + len(set(PROMPTS))
    server.requests.clear()
    assert fill(output_path=address).encoded == 0
    assert put(server) == []


def test_a_run_on_the_machine_that_wrote_a_cache_fetches_no_shard_of_it(server, address, fill, tmp_path):
    fill(output_path=address)
    server.requests.clear()
    train(TrainOptions(from_cache=address, output_path=tmp_path / "run", lora_rank=2, max_steps=3, device="cpu"))
    assert not [request for request, _ in server.requests if "GET" in request and "safetensors" in request]


def test_what_was_uploaded_before_a_command_ended_is_not_encoded_again_and_no_manifest_is_there_before(
    server, address, fill, monkeypatch
):
    uploaded = []
    real = Remote.put

    def refuse_third(self, name, *given, **how):
        if name.endswith(".safetensors"):
            uploaded.append(name)
            if len(uploaded) > 2:
                server.faults.append(Fault("PUT", status=503))
        return real(self, name, *given, **how)

    monkeypatch.setattr(Remote, "put", refuse_third)
    monkeypatch.setattr(remote_output, "UPLOADS", 1)
    with pytest.raises(RemoteUnreachable, match="cannot be reached: status 503"):
        fill(output_path=address)
    monkeypatch.setattr(Remote, "put", real)
    server.faults.clear()
    before = there(address)
    assert sorted(name for name in before if ".workers" not in name) == sorted(uploaded[:2])
    with pytest.raises(DsctlError, match="does not exist"):
        CachedDataset(address)
    made = fill(output_path=address)
    assert made.encoded == len(PROMPTS) + len(set(PROMPTS)) - 4
    assert before.items() <= {**before, **there(address)}.items()
    assert len(CachedDataset(address)) == len(PROMPTS)


@pytest.mark.parametrize("name", ["run.json", "shards/mine.txt", "manifest.json", "index.json"])
def test_an_address_with_anything_of_others_is_no_cache(server, address, fill, name):
    Remote(address).put(name, b'{"name": "an app"}')
    before = there(address)
    with pytest.raises(DsctlError, match=f"`dsctl cache` did not write {name}"):
        fill(output_path=address)
    assert there(address) == before


def test_pruning_removes_what_no_row_needs_after_the_manifest_and_nothing_of_others(
    server, address, fill, data, tmp_path
):
    fill(output_path=address)
    mine = {f"shards/{'0' * 64}.safetensors", "notes.txt", "shards/notes.txt"}
    for name in sorted(mine)[:2]:
        Remote(address).put(name, b"mine")
    write_rows(data, PROMPTS[:3])
    with pytest.raises(UsageError, match="--prune has no effect with --shared"):
        fill(output_path=address, prune=True, shared=True)
    server.requests.clear()
    result = fill(output_path=address, prune=True)
    assert result.encoded == 0
    assert result.freed_bytes > 0
    kinds = [request.split()[0] for request, _ in server.requests if "/of/" in request and ".workers" not in request]
    assert "PUT" not in kinds[kinds.index("DELETE") :]
    fill(prune=True)
    left = there(address)
    assert {name: left.pop(name) for name in mine & set(left)} == dict.fromkeys(sorted(mine)[:2], b"mine")
    one, other = CachedDataset(address), CachedDataset(tmp_path / "filled")
    assert [repr(one[n]) for n in range(3)] == [repr(other[n]) for n in range(3)]
    assert sum(len(each) for name, each in left.items() if "shards" in name) == result.manifest.bytes["shards"]


def test_a_shard_that_is_cut_off_is_encoded_again_where_the_manifest_names_it(server, address, fill):
    fill(output_path=address)
    before = there(address)
    name = max(before, key=lambda name: len(before[name]) if "shards" in name else 0)
    Remote(address).put(name, before[name][:-1])
    assert fill(output_path=address).encoded == 2
    assert there(address) == before


def test_a_command_is_refused_beside_another_and_after_one_that_was_killed_is_not(server, address, fill, monkeypatch):
    from dsctl_core.cache.remote_output import ALONE, WORKERS
    from dsctl_core.files import leases
    from dsctl_core.remote.leases import RemoteWorker
    from dsctl_core.stages import share

    monkeypatch.setattr(share, "JOINING", 0)
    for group, shared in ((ALONE, True), ("a" * 16, False)):
        busy = pytest.raises(DsctlError, match=f"another command is writing to {address}")
        with RemoteWorker(Remote(address), WORKERS, group), busy:
            fill(output_path=address, shared=shared)
    Remote(address).put(f"{WORKERS}/{ALONE}/b2{leases.WORKER}", b'{"machine": "another", "pid": 1, "since": 1.0}')
    Remote(address).put(f"{WORKERS}/{'b' * 16}/c3{leases.NOTE}", b"{}")
    with pytest.raises(DsctlError, match="another command is writing to"):
        fill(output_path=address)
    monkeypatch.setattr(leases, "STALE", 0)
    fill(output_path=address)
    assert not [name for name in there(address) if name.startswith(".workers")]


def test_a_store_that_cannot_write_on_a_condition_is_not_shared(server, address, fill, monkeypatch):
    with pytest.raises(RemoteError, match="memory://b/c cannot be shared by several commands"):
        fill(output_path="memory://b/c", shared=True)
    real = Remote.put  # of a store that takes no notice of conditions
    monkeypatch.setattr(Remote, "put", lambda self, name, data, **_: real(self, name, data))
    with pytest.raises(RemoteError, match=f"{address} cannot be shared by several commands"):
        fill(output_path=address, shared=True)
    assert there(address) == {}


def test_any_store_of_fsspec_takes_the_cache_of_one_command(address, fill, tmp_path):
    fill()
    where = f"memory://{uuid.uuid4()}/c"
    fill(output_path=where)
    assert there(where) == content(tmp_path / "filled")
    assert fill(output_path=where, prune=True).encoded == 0


def test_an_address_that_is_read_only_is_refused_and_a_bound_on_copies_is_taken(address, fill, tmp_path):
    with pytest.raises(RemoteError, match="https://host/c cannot be written to"):
        fill(output_path="https://host/c")
    base = {"model": "m", "dataset_base_path": tmp_path}
    CacheOptions(output_path=address, remote_cache_gb=1, **base)
    with pytest.raises(UsageError, match="--remote-cache-gb has no effect"):
        CacheOptions(output_path=Path("c"), remote_cache_gb=1, **base)


def test_the_first_stage_of_a_task_writes_to_an_address_what_it_writes_to_a_folder(address, model, data, tmp_path):
    base = {"task": "sft:data_process", "model": str(model), "dataset_base_path": data, "device": "cpu"}
    here = make_cache(TrainOptions(output_path=tmp_path / "here", **base))
    made = make_cache(TrainOptions(output_path=address, remote_cache_gb=1, **base))
    assert made.encoded == here.encoded > len(PROMPTS)
    assert there(address) == content(tmp_path / "here")
    assert make_cache(TrainOptions(output_path=address, **base)).encoded == 0
    Remote(address).put("notes.txt", b"of another")
    Remote(address).delete("manifest.json")
    with pytest.raises(DsctlError, match="`dsctl cache` did not write notes.txt there"):
        make_cache(TrainOptions(output_path=address, **base))
    with pytest.raises(UsageError, match=f"--output-path is the address {address}, and must be on this machine"):
        TrainOptions(output_path=address, lora_rank=2, **{**base, "task": "sft"})
