"""Training from a cache in an object store: the numbers of the local one, each shard fetched once, within bounds."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

import pytest

from dsctl_core.cache import growing_shards, remote_shards, shards
from dsctl_core.cache.reader import CachedDataset
from dsctl_core.commands import train as train_command
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.dataset import validate
from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.options import CacheOptions, DatasetValidateOptions, TrainOptions
from dsctl_core.remote import growing, local, store
from dsctl_core.remote.errors import RemoteError
from dsctl_core.remote.retry import Patience
from dsctl_core.stages import encode
from dsctl_core.training.plan.module import build_module
from tests.dsctl_core.cache.conftest import PROMPTS
from tests.s3_server import Fault

BUCKET = "caches"


@pytest.fixture(scope="module")
def small_shards(model, pictures, tmp_path_factory) -> Path:
    """A cache with two parts in a shard."""
    folder = tmp_path_factory.mktemp("small") / "cache"
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(encode, "PARTS_IN_A_SHARD", 2)
        make_cache(CacheOptions(model=str(model), dataset_base_path=pictures, output_path=folder, device="cpu"))
    return folder


@pytest.fixture
def address(s3, small_shards, tmp_path, monkeypatch) -> str:
    """The address of a copy of it in the store; there are no local copies of it yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    where = f"{BUCKET}-{uuid.uuid4()}"
    s3.make_bucket(where)
    for path in small_shards.rglob("*.*"):
        s3.put(where, f"of/{path.relative_to(small_shards).as_posix()}", path.read_bytes())
    s3.requests.clear()
    return f"s3://{where}/of"


def run(folder: Path | str, out: Path, **more) -> list[float]:
    base = {"lora_rank": 2, "max_steps": 8, "dataset_repeat": 2, "device": "cpu", "resume": "auto", "save_steps": 3}
    train(TrainOptions(from_cache=folder, output_path=out, **{**base, **more}))
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def fetched(s3) -> list[str]:
    """Return the shards that were asked for with their bytes, in order."""
    return [request.rpartition("/")[2] for request, _ in s3.requests if "GET" in request and shards.SUFFIX in request]


def test_a_run_from_the_store_has_the_losses_of_the_local_one_and_fetches_each_shard_once(
    s3, address, small_shards, tmp_path
):
    expected = run(small_shards, tmp_path / "local")
    assert run(address, tmp_path / "remote") == expected
    names = sorted(path.name for path in (small_shards / "shards").iterdir())
    assert len(names) > 4
    assert sorted(set(fetched(s3))) == names
    assert len(fetched(s3)) == len(names)
    s3.requests.clear()
    part = run(address, tmp_path / "stopped", max_steps=3, lr_scheduler="constant")
    assert run(address, tmp_path / "stopped", lr_scheduler="constant") == expected
    assert part == expected[:3]
    assert fetched(s3) == [], "other runs have the copies"


def test_copies_are_bounded_and_come_again(s3, address, small_shards, monkeypatch):
    sizes = [path.stat().st_size for path in (small_shards / "shards").iterdir()]
    monkeypatch.setattr(remote_shards, "MOST_OPEN", 1)
    monkeypatch.setenv(local.LIMIT, repr(2.5 * max(sizes) / 1e9))
    cached, plain = CachedDataset(address), CachedDataset(small_shards)
    for turn in range(2):
        for position in range(len(PROMPTS)):
            cached.fetch_ahead([position, (position + 1) % len(PROMPTS)])
            assert repr(cached[position]) == repr(plain[position]), turn
            copies = local.local_copies().folder.glob(f"*{shards.SUFFIX}")
            assert sum(path.stat().st_size for path in copies) <= 2.5 * max(sizes)
    assert len(fetched(s3)) > len(sizes)


def test_what_was_fetched_ahead_is_not_asked_for_again(s3, address, small_shards):
    cached = CachedDataset(address)
    cached.fetch_ahead([4, 1])
    deadline = time.monotonic() + 60
    while len(fetched(s3)) < 4 and time.monotonic() < deadline:  # a picture and a prompt of each
        time.sleep(0.05)
    assert repr(cached[1]) == repr(CachedDataset(small_shards)[1])
    assert repr(cached[4]) == repr(CachedDataset(small_shards)[4])
    assert len(fetched(s3)) == len(set(fetched(s3))) <= 4


@pytest.fixture
def in_blocks(monkeypatch, small_shards) -> int:
    """Shards that are fetched in many blocks, by two threads; their number."""
    monkeypatch.setattr(growing, "FIRST", 256)
    monkeypatch.setattr(growing, "BLOCK", 512)
    monkeypatch.setattr(growing_shards, "FETCHERS", 2)
    return sum(growing.block_count(path.stat().st_size) for path in (small_shards / "shards").iterdir())


def test_a_sample_is_read_when_its_own_blocks_are_there_and_each_block_is_fetched_once(
    s3, address, small_shards, in_blocks
):
    cached, plain = CachedDataset(address), CachedDataset(small_shards)
    s3.faults.append(Fault(f"GET /{address[5:]}/shards", wait=0.5))  # so that the rest is not there at once
    cached.fetch_ahead([3])
    assert repr(cached[3]) == repr(plain[3])
    early = len(fetched(s3))
    assert cached.pending() == 2  # a picture and a prompt, of which other samples have the rest
    s3.faults.clear()
    assert [repr(cached[position]) for position in range(len(plain))] == [repr(each) for each in plain]
    cached.finish()
    assert cached.pending() == 0
    assert 4 < early < in_blocks / 2
    assert len(fetched(s3)) == in_blocks
    for path in (small_shards / "shards").iterdir():
        with local.local_copies().made(path.name, shards.SUFFIX, lambda new: pytest.fail("it is not there")) as copy:
            assert copy.read_bytes() == path.read_bytes()


def test_a_run_in_blocks_is_stopped_and_goes_on_elsewhere_with_the_same_losses(
    s3, address, small_shards, in_blocks, tmp_path, monkeypatch
):
    expected = run(small_shards, tmp_path / "local", lr_scheduler="constant")
    run(address, tmp_path / "remote", max_steps=3, lr_scheduler="constant")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    s3.requests.clear()
    assert run(address, tmp_path / "remote", lr_scheduler="constant", dataset_num_workers=2) == expected
    assert len(fetched(s3)) == in_blocks, "the processes that read fetch nothing that another one has"


def test_fetching_begins_before_the_model_is_loaded(s3, address, tmp_path, monkeypatch):
    def load(plan, progress):
        deadline = time.monotonic() + 30
        while len(fetched(s3)) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        before.extend(fetched(s3))
        return build_module(plan, progress)

    before: list[str] = []
    monkeypatch.setattr(train_command, "build_module", load)
    run(address, tmp_path / "run", max_steps=2)
    assert len(before) >= 4


def test_a_damaged_shard_ends_a_run_that_has_read_from_it(s3, address, small_shards, in_blocks, tmp_path):
    name = max((path.stat().st_size, path.name) for path in (small_shards / "shards").iterdir())[1]
    whole = (small_shards / "shards" / name).read_bytes()
    s3.put(address.split("/")[2], f"of/shards/{name}", whole[:-1] + bytes([whole[-1] ^ 1]))
    cached = CachedDataset(address)
    for position in range(len(cached)):
        cached.fetch_ahead([position])
    with pytest.raises(DsctlError, match=f"{address}/shards/{name} is damaged"):
        cached.finish()
    with pytest.raises(DsctlError, match=f"{address}/shards/{name} is damaged"):
        cached.fetch_ahead([0])
    with pytest.raises(DsctlError, match=f"{name} is damaged") as error:
        run(address, tmp_path / "run", max_steps=len(cached), dataset_repeat=1)
    assert "do not go on from a run that has read from it" in (error.value.hint or "")
    assert not local.local_copies().has(name, shards.SUFFIX)


@pytest.mark.parametrize("at", [0, 9, 300])
def test_a_shard_with_a_damaged_header_is_named(s3, address, small_shards, in_blocks, at):
    """In the length of the header, in its JSON, and in the places of the tensors that it gives."""
    names = [path.name for path in (small_shards / "shards").iterdir()]
    for name in names:
        whole = bytearray((small_shards / "shards" / name).read_bytes())
        if at == 300:
            whole = whole.replace(b'"data_offsets":[', b'"data_offsets":[9')[: len(whole)]
        else:
            whole[at] ^= 0xFF
        s3.put(address.split("/")[2], f"of/shards/{name}", bytes(whole))
    cached = CachedDataset(address)
    cached.fetch_ahead([0, 1])
    with pytest.raises(DsctlError, match=r"\.safetensors is damaged|is not an entry that dsctl has written"):
        cached[0]
    with pytest.raises(DsctlError, match=r"\.safetensors is damaged"):
        cached.finish()


def test_a_cut_line_is_an_error_of_the_reader_and_not_of_later_reads(s3, address, small_shards, in_blocks, monkeypatch):
    monkeypatch.setattr(store, "Patience", lambda: Patience(tries=2, first_wait=0.01))
    cached = CachedDataset(address)
    fault = Fault("GET", status=503)
    s3.faults.append(fault)
    cached.fetch_ahead([0, 1])
    with pytest.raises(RemoteError, match="cannot be reached: status 503"):
        cached[0]
    s3.faults.remove(fault)
    assert repr(cached[0]) == repr(CachedDataset(small_shards)[0])


def test_buckets_read_headers_alone(s3, address, small_shards):
    assert CachedDataset(address).buckets(("prompt_embeds",)) == CachedDataset(small_shards).buckets(("prompt_embeds",))
    assert not list(local.local_copies().folder.glob(f"*{shards.SUFFIX}"))


def test_a_shard_that_is_missing_or_damaged_is_named(s3, address, small_shards):
    bucket, name = address.split("/")[2], min(path.name for path in (small_shards / "shards").iterdir())
    whole = (small_shards / "shards" / name).read_bytes()
    s3.put(bucket, f"of/shards/{name}", whole[:-1] + bytes([whole[-1] ^ 1]))
    cached = CachedDataset(address)
    cached.check_at_start()
    with pytest.raises(DsctlError, match=f"{address}/shards/{name} is damaged"):
        [cached[position] for position in range(len(cached))]
    s3.client.delete_object(Bucket=bucket, Key=f"of/shards/{name}")
    with pytest.raises(DsctlError, match=f"{address}/shards/{name} is missing"):
        CachedDataset(address).check_at_start()


def test_a_bound_on_copies_of_a_local_cache_is_refused(small_shards, tmp_path):
    with pytest.raises(UsageError, match="--remote-cache-gb has no effect"):
        TrainOptions(from_cache=small_shards, output_path=tmp_path, lora_rank=2, remote_cache_gb=1)


def test_a_cache_at_an_address_is_validated_as_the_one_in_a_folder(s3, address, small_shards, tmp_path):
    def found(place: Path | str) -> tuple[list[tuple[str, str]], str]:
        result = validate(DatasetValidateOptions(path=place))
        return [(problem.kind, problem.level) for problem in result.found.problems], result.found.layout

    expected = found(small_shards)
    assert expected[0] == []
    assert found(address) == expected
    names = sorted(path.name for path in (small_shards / "shards").iterdir())
    bucket = address.split("/")[2]
    content = (small_shards / "shards" / names[0]).read_bytes()
    s3.put(bucket, f"of/shards/{names[0]}", content[:-1] + bytes([content[-1] ^ 1]))  # although there is a good copy
    s3.put(bucket, f"of/shards/{names[1]}", content[:-1])
    s3.put(bucket, f"of/shards/{'0' * 64}{shards.SUFFIX}", content)
    kinds, _ = found(address)
    assert [kind for kind in kinds if kind[0] != "entry"] == [("shard", "error")] * 2 + [("left over", "warning")]
    with pytest.raises(UsageError, match=rf"--workers has no effect on {address}, which is a cache"):
        validate(DatasetValidateOptions(path=address, workers=1))
    s3.faults.append(Fault("manifest", status=403))
    with pytest.raises(RemoteError, match="the store refuses these credentials"):
        validate(DatasetValidateOptions(path=address))
