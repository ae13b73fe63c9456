"""`dsctl dataset validate` on a cache: every byte is looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dsctl.commands.spoiled import good
from tests.dsctl.running import Dsctl


@pytest.fixture
def cache(dsctl: Dsctl, model: Path) -> Path:
    """A cache of four pictures."""
    good(Path("data"))
    run = dsctl("cache", f"--model={model}", "--dataset-base-path=data", "--output-path=cache", "--device=cpu")
    assert run.code == 0, run.err
    return Path("cache")


def test_a_whole_cache_is_called_clean(dsctl: Dsctl, cache: Path):
    run = dsctl("dataset", "validate", cache, "--json", "--report", "report.html")
    assert (run.code, run.json["rows"], run.json["problems"]) == (0, 4, [])
    assert run.json["summary"]["layout"].startswith("cache of 4 entries for ")
    assert "<th>entries</th><td>4</td>" in Path("report.html").read_text(encoding="utf-8")
    assert dsctl("dataset", "validate", cache).out.splitlines()[-1] == "no problem found"


def test_with_a_report_every_byte_is_read_once_all_the_same(dsctl: Dsctl, cache: Path, monkeypatch: pytest.MonkeyPatch):
    from dsctl_core.cache import shards
    from dsctl_core.cache.reader import CachedDataset

    hashed, loaded = [], []
    digest, sample = shards.digest_file, CachedDataset.sample
    monkeypatch.setattr(shards, "digest_file", lambda path: hashed.append(path) or digest(path))
    monkeypatch.setattr(CachedDataset, "sample", lambda self, entry: loaded.append(entry.row) or sample(self, entry))
    assert dsctl("dataset", "validate", cache, "--report", "report.html").code == 0
    assert len(hashed) == len(set(hashed)) == len(list(cache.glob("shards/*"))) > 0
    assert loaded == [0, 1, 2, 3]
    assert "4 of 16x" in Path("report.html").read_text(encoding="utf-8")  # their shapes come from the headers


def test_with_the_model_the_report_shows_what_the_latents_decode_to(dsctl: Dsctl, cache: Path, model: Path):
    run = dsctl("dataset", "validate", cache, "--model", model, "--report", "report.html")
    assert run.code == 0, run.err
    assert Path("report.html").read_text(encoding="utf-8").count("data:image/png;base64") == 4


def test_a_changed_byte_is_found(dsctl: Dsctl, cache: Path):
    shard = next(path for path in sorted(cache.rglob("*.safetensors")))
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    run = dsctl("dataset", "validate", cache, "--json")
    (problem,) = run.json["problems"]
    assert (run.code, problem["kind"], problem["level"]) == (1, "shard", "error")
    assert shard.name in problem["message"]
    assert problem["hint"]


@pytest.mark.parametrize("name", ["manifest.json", "index.json"])
def test_a_cache_without_its_manifest_or_index_is_an_error(dsctl: Dsctl, cache: Path, name: str):
    (cache / name).unlink()
    run = dsctl("dataset", "validate", cache, "--json")
    assert (run.code, run.json["problems"][0]["kind"]) == (1, "manifest")
