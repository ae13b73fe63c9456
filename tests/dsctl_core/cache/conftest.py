"""A tiny random model, pictures, and a cache of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dsctl_core.commands.cache import make_cache
from dsctl_core.options import CacheOptions
from tests.tiny_models import write_tiny_model

PROMPTS = ["a red one", "a blue one", "two green ones on a table", "a red one", "nothing", "a cat"]


def write_rows(folder: Path, prompts: list[str]) -> None:
    """Write a table with a row for each prompt, of the picture of its number."""
    lines = [f'{number}.png,"{prompt}"' for number, prompt in enumerate(prompts) if prompt]
    (folder / "metadata.csv").write_text("\n".join(["image,prompt", *lines]) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("qwen-image", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(24):
        Image.effect_noise((48, 32) if number % 3 else (32, 32), 10 + 5 * number).convert("RGB").save(
            folder / f"{number}.png"
        )
    write_rows(folder, PROMPTS)
    return folder


@pytest.fixture
def data(pictures: Path, tmp_path: Path) -> Path:
    """A dataset that a test may change."""
    return Path(shutil.copytree(pictures, tmp_path / "data"))


@pytest.fixture(scope="session")
def whole_cache(model: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caches") / "whole"
    make_cache(CacheOptions(model=str(model), dataset_base_path=pictures, output_path=folder, device="cpu"))
    return folder


@pytest.fixture
def cache(whole_cache: Path, tmp_path: Path) -> Path:
    """A cache that a test may change; it was made of the pictures in `pictures`."""
    return Path(shutil.copytree(whole_cache, tmp_path / "cache"))


@pytest.fixture
def fill(model: Path, data: Path, tmp_path: Path) -> Callable:
    """Make or update the cache of `data` in the folder "filled"."""

    def run(**settings):
        base = {"model": str(model), "dataset_base_path": data, "output_path": tmp_path / "filled", "device": "cpu"}
        return make_cache(CacheOptions(**{**base, **settings}))

    return run
