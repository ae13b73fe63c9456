"""A cache as a whole: its numbers, its problems, and the page with pictures from its latents."""

import base64
import io

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.validate_cache import validate_cache
from dsctl_core.options import CacheOptions


@pytest.fixture
def cache(tiny_folder, dataset_folder, tmp_path):
    options = CacheOptions(
        model=str(tiny_folder), dataset_base_path=dataset_folder, output_path=tmp_path / "cache", device="cpu"
    )
    make_cache(options)
    return tmp_path / "cache"


def test_a_whole_cache_is_clean_and_counted(cache):
    found = validate_cache(cache)
    assert found.clean
    assert found.as_json()["problems"] == []
    assert (found.rows, found.summary["entries"], found.summary["family"]) == (4, 4, "qwen-image")
    assert "no problem found" in found.lines()


def test_a_damaged_cache_is_not_clean_and_names_the_file(cache):
    shard = min((cache / "shards").iterdir())
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found = validate_cache(cache, report=cache.parent / "page.html", model="tiny")
    assert not found.clean
    assert shard.name in found.as_json()["problems"][0]["file"]
    assert shard.name in (cache.parent / "page.html").read_text()


def test_no_cache_is_one_problem(tmp_path):
    found = validate_cache(tmp_path)
    assert not found.clean
    assert found.rows == 0
    assert "is not a cache" in found.problems[0].message


def test_a_cache_that_cannot_be_read_at_all_gets_its_page_too(cache):
    (cache / "manifest.json").write_text("not json")
    found = validate_cache(cache, report=cache.parent / "page.html", model="tiny")
    assert not found.clean
    written = (cache.parent / "page.html").read_text()
    assert found.problems
    assert all(escape(problem.message) in written for problem in found.problems)


def test_a_shard_that_nobody_uses_is_told_and_no_harm(cache, dataset_folder, tiny_folder):
    table = dataset_folder / "metadata.csv"
    table.write_text("image,prompt\n0.png,something else\n")
    make_cache(CacheOptions(model=str(tiny_folder), dataset_base_path=dataset_folder, output_path=cache, device="cpu"))
    found = validate_cache(cache)
    assert [problem.kind for problem in found.problems] == ["left over"]
    assert found.clean


def test_the_page_shows_the_pictures_that_the_latents_decode_to(cache, tiny_folder, load_pipe, tmp_path):
    validate_cache(cache, report=tmp_path / "page.html", model=str(tiny_folder))
    parts = (tmp_path / "page.html").read_text().split("base64,")[1:]
    assert len(parts) == 4
    from dsctl_core.cache.reader import CachedDataset

    dataset = CachedDataset(cache)
    latents = dataset.sample(dataset.entries[0])["shared.input_latents"]
    expected = load_pipe().decode_latents(latents)[0]
    shown = Image.open(io.BytesIO(base64.b64decode(parts[0].partition('"')[0])))
    assert shown.size == (48, 32)
    assert np.array_equal(np.array(shown), np.array(expected))
