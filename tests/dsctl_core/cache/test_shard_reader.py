"""Shards are verified as they are first read, once on a machine; single parts are read as safetensors has them."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from dsctl_core.cache import reader, shard_reader, verified
from dsctl_core.cache.codec import decode
from dsctl_core.cache.manifest import Entry, Recipe, manifest_texts, write_manifest
from dsctl_core.cache.reader import CACHED, CachedDataset
from dsctl_core.cache.shards import FOLDER, Part, make_part, structures, write_shard
from dsctl_core.data.known_files import FINE
from dsctl_core.errors import DsctlError
from dsctl_core.files.digest import digest
from dsctl_core.stages.encode import parts_in_a_shard

SHARDS, PARTS = 80, 3  # more shards than are open at a time
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.float64]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with a part for each of many entries, written long enough ago to be remembered."""
    folder = tmp_path / "cache"
    (folder / FOLDER).mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    entries, names, sizes = [], {}, {}
    for shard in range(SHARDS):
        parts: dict[str, Part] = {}
        for number in range(shard * PARTS, (shard + 1) * PARTS):
            values = {
                "shared.x": torch.randn((1, number % 5, 2), generator=generator).to(DTYPES[number % len(DTYPES)]),
                # Text that looks like the key of another part, as JSON in a header has it.
                "posi.text": [f'","{digest(number + 1)}":{{"shared.x":1}}', "ü"],
                "nega.row": torch.tensor([[number]]),
            }
            parts[digest(number)] = make_part(values, torch.float64)
        path = write_shard(folder, parts)
        names |= dict.fromkeys(parts, path.name)
        sizes[path.name] = path.stat().st_size
    entries = [Entry(number, digest([number]), {}, (digest(number),)) for number in range(SHARDS * PARTS)]
    recipe = Recipe("qwen-image", "sft", ("dit",), (), (), {}, "float32", {}, (), {}, {})
    write_manifest(folder, *manifest_texts(recipe, entries, names, sizes, 0, []))
    time.sleep(2 * FINE)
    return folder


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the shards that are hashed."""
    found: list[str] = []
    real = verified.examine
    monkeypatch.setattr(verified, "examine", lambda path: (found.append(path.name), real(path))[1])
    return found


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


def test_every_part_is_read_as_safetensors_has_it_in_any_order(cache: Path):
    dataset = CachedDataset(cache)
    order = list(range(len(dataset)))
    random.Random(0).shuffle(order)
    assert len(order) == SHARDS * PARTS > shard_reader.MOST_OPEN
    for number in order:
        entry = dataset.entries[number]
        path = cache / FOLDER / dataset.shard_names[entry.parts[0]]
        tensors, structure = load_file(path), structures(path)[entry.parts[0]]
        key = entry.parts[0]
        expected = {name: decode(value, lambda n, k=key, t=tensors: t[f"{k}/{n}"]) for name, value in structure.items()}
        sample = dataset[number][CACHED]
        assert sample.keys() == expected.keys()
        assert all(same(sample[name], expected[name]) for name in expected)
        assert dataset.shape(entry, "shared.x") == list(expected["shared.x"].shape)
        assert len(dataset._shards._open) <= shard_reader.MOST_OPEN


def test_worker_processes_read_what_the_main_process_has_open(cache: Path):
    dataset = CachedDataset(cache)
    alone = [int(dataset[number][CACHED]["nega.row"]) for number in range(len(dataset))]
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    assert [int(row[CACHED]["nega.row"]) for row in loader] == alone == list(range(SHARDS * PARTS))


def test_a_thread_reads_beside_others_with_files_of_its_own(cache: Path):
    dataset = CachedDataset(cache)
    numbers = list(range(len(dataset)))
    assert int(dataset[0][CACHED]["nega.row"]) == 0
    datasets = [dataset, dataset.reopened(), dataset.reopened()]
    opened = [each._shards for each in datasets]
    assert len({id(each) for each in opened}) == 3 and not datasets[1]._shards._open, "none of the open files is shared"
    with ThreadPoolExecutor(3) as pool:
        read = pool.map(lambda each: [int(each[number][CACHED]["nega.row"]) for number in numbers], datasets)
        assert list(read) == [numbers] * 3


def test_a_shard_is_hashed_when_it_is_first_read_and_never_again(cache: Path, examined: list[str], monkeypatch):
    monkeypatch.setattr(reader, "WHOLE", 0)
    dataset = CachedDataset(cache)
    dataset.check_at_start()
    dataset.buckets(())
    assert examined == []
    for number in (0, 1, 4, 0):
        dataset[number]
    assert examined == [dataset.shard_names[digest(number)] for number in (0, 4)]
    again = CachedDataset(cache)
    for number in range(len(again)):
        again[number]
    assert len(examined) == len(set(examined)) == SHARDS


def test_a_small_cache_is_verified_at_the_start_once(cache: Path, examined: list[str], monkeypatch):
    hashed: list[Path] = []
    real = verified.examine_all
    monkeypatch.setattr(
        verified, "examine_all", lambda paths: real([path for path in paths if not hashed.append(path)])
    )
    CachedDataset(cache).check_at_start()
    assert len(hashed) == SHARDS
    CachedDataset(cache).check_at_start()
    assert len(hashed) == SHARDS
    CachedDataset(cache).check_shards()
    assert len(hashed) == 2 * SHARDS


def test_damage_of_a_large_cache_is_found_when_it_is_read_and_what_is_missing_at_the_start(cache: Path, monkeypatch):
    monkeypatch.setattr(reader, "WHOLE", 0)
    dataset = CachedDataset(cache)
    for number in range(len(dataset)):
        dataset[number]
    path = cache / FOLDER / dataset.shard_names[digest(7)]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    damaged = CachedDataset(cache)
    damaged.check_at_start()
    assert damaged[0]
    with pytest.raises(DsctlError, match="is damaged: its content does not have the checksum"):
        damaged[7]
    path.write_bytes(bytes(data[:-1]))
    with pytest.raises(DsctlError, match=f"has {len(data) - 1} bytes, not {len(data)}"):
        CachedDataset(cache).check_at_start()
    path.unlink()
    with pytest.raises(DsctlError, match="is missing"):
        CachedDataset(cache).check_at_start()


def test_the_number_of_shards_grows_slower_than_that_of_parts_and_is_the_same_in_every_run():
    found = {jobs: parts_in_a_shard(jobs) for jobs in (1, 2**18, 2**18 + 1, 10**6, 10**9)}
    assert found == {1: 64, 2**18: 64, 2**18 + 1: 128, 10**6: 256, 10**9: 256}
