"""Training from a cache is training without one, for every family and for the embedded models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from dsctl_core.assets import assets_path
from dsctl_core.cache.reader import CachedDataset
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.train import train
from dsctl_core.families import families, find_preset
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.options import CacheOptions, TrainOptions
from tests.families_fixture.tiny import added_families, write_dawn
from tests.tiny_models import write_tiny_model

STEPS = 8
MODELS = [*families(), "dawn", "tiny"]
# The other embedded models, on the first rows of an embedded dataset: its name, and what training needs to be told.
EMBEDDED: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny-edit": ("frame_edit", {"data_file_keys": ("image", "edit_image"), "extra_inputs": ("edit_image",)}),
    "tiny-video": ("moves_down", {"data_file_keys": ("video",), "num_frames": 5, "height": 32, "width": 32}),
}
PROMPTS = ["a red one", "a blue one", "two green ones on a table", "a red one"]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tiny random model of a family, or the name of an embedded one."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    with added_families():
        if request.param == "dawn":
            yield str(write_dawn(folder))
        elif request.param in families():
            yield str(write_tiny_model(request.param, folder))
        else:
            yield find_preset(request.param)[1].name


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of 32x48, with prompts of different lengths, two of them equal."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(len(PROMPTS)):
        pixels = Random(number).randbytes(48 * 32 * 3)
        Image.frombytes("RGB", (48, 32), pixels).save(folder / f"{number}.png")
    lines = [f"{number}.png,{prompt}" for number, prompt in enumerate(PROMPTS)]
    (folder / "metadata.csv").write_text("\n".join(["image,prompt", *lines]) + "\n")
    return folder


def trained(out: Path, **settings: Any) -> tuple[list[float], dict[str, Any]]:
    """Train, and return every loss and the final weights."""
    base = {"dataset_repeat": 10, "lora_rank": 2, "max_steps": STEPS, "seed": 3, "device": "cpu", "output_path": out}
    result = train(TrainOptions(**{**base, **settings}))
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines], read_safetensors(result.checkpoint)[0]


def cached(out: Path, model: str, data: Path, **settings: Any) -> Path:
    make_cache(CacheOptions(model=model, dataset_base_path=data, output_path=out, device="cpu", **settings))
    return out


class Once:
    """Trainings in one stage and caches of one model, each made once and shared by the tests that only read it."""

    def __init__(self, folder: Path, model: str, data: Path) -> None:
        self.folder, self.model, self.data = folder, model, data
        self.made: dict[str, Any] = {}

    def plain(self, **settings: Any) -> tuple[list[float], dict[str, Any]]:
        """Return what a training without a cache gives."""
        settings = {"batch_size": 1, **settings}

        def make(out: Path) -> tuple[list[float], dict[str, Any]]:
            result = trained(out, cache=False, model=self.model, dataset_base_path=self.data, **settings)
            assert not (out / "cache").exists()
            return result

        return self._once("plain", settings, make)

    def cache(self, **settings: Any) -> Path:
        """Return the folder of a cache."""
        return self._once("cache", settings, lambda out: cached(out, self.model, self.data, **settings))

    def _once(self, kind: str, settings: dict[str, Any], make: Callable[[Path], Any]) -> Any:
        name = f"{kind} {sorted(settings.items())}"
        if name not in self.made:
            self.made[name] = make(self.folder / str(len(self.made)))
        return self.made[name]


@pytest.fixture(scope="module")
def once(model: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Once:
    return Once(tmp_path_factory.mktemp("once"), model, data)


def distance(a: tuple[list[float], dict[str, Any]], b: tuple[list[float], dict[str, Any]], steps: int = STEPS) -> float:
    """Return the largest difference of any weight, and of any loss as a part of it where it is above 1."""
    assert len(a[0]) == len(b[0]) == steps
    assert a[1].keys() == b[1].keys()
    losses = max(abs(x - y) / max(abs(x), 1) for x, y in zip(a[0], b[0], strict=True))
    return max(losses, *(float((a[1][name] - b[1][name]).abs().max()) for name in a[1]))


def test_every_family_and_the_embedded_model_are_seen() -> None:
    assert {"qwen-image", "tiny"} <= set(MODELS)
    presets = [preset for family in families().values() for preset in family.presets]
    embedded = {preset.name for preset in presets if preset.folder is not None}
    assert embedded == {"tiny", *EMBEDDED}


def test_a_cache_encoded_one_by_one_gives_the_same_numbers_to_the_bit(
    once: Once, model: str, data: Path, tmp_path: Path
) -> None:
    source = {"model": model, "dataset_base_path": data, "mixed_precision": "no", "batch_size": 3}
    plain = once.plain(mixed_precision="no", batch_size=3)
    assert distance(plain, trained(tmp_path / "auto", **source)) == 0
    assert CachedDataset(tmp_path / "auto" / "cache").manifest.counts["entries"] == len(PROMPTS)
    cache = once.cache(mixed_precision="no")
    again = trained(tmp_path / "again", from_cache=cache, mixed_precision="no", batch_size=3)
    assert distance(plain, again) == 0


@pytest.mark.parametrize(("precision", "most"), [("no", 1e-5), ("bf16", 1e-3)])
def test_a_cache_encoded_in_batches_gives_the_same_losses_and_weights_but_for_rounding(
    once: Once, model: str, data: Path, tmp_path: Path, precision: str, most: float
) -> None:
    settings = {"mixed_precision": precision}
    plain = once.plain(**settings)
    cache = cached(tmp_path / "cache", model, data, batch_size=4, mixed_precision=precision)
    assert distance(plain, trained(tmp_path / "again", from_cache=cache, **settings)) <= most


def test_in_bfloat16_a_cache_encoded_one_by_one_gives_the_same_numbers_to_the_bit(once: Once, tmp_path: Path) -> None:
    settings = {"mixed_precision": "bf16"}
    again = trained(tmp_path / "again", from_cache=once.cache(**settings), **settings)
    assert distance(once.plain(**settings), again) == 0


def test_an_entry_is_what_the_second_stage_reads_and_nothing_else(once: Once) -> None:
    dataset = CachedDataset(once.cache(mixed_precision="bf16"))
    assert len(dataset.entries) == len(PROMPTS)
    for entry in dataset.entries:
        names = {name.partition(".")[2] for name in dataset.sample(entry)}
        assert not names & {"input_image", "noise", "latents", "prompt", "negative_prompt", "seed"}
        assert "input_latents" in names
    # The two equal prompts are one part; the picture of each is its own. What units make of inputs that no row gives,
    # such as reference pictures, can be a few more parts, which all share.
    assert dataset.manifest.counts["parts"] - len(PROMPTS) - len(set(PROMPTS)) in (0, 1, 2, 3)
    assert {tensor.dtype.itemsize for tensor in _tensors(dataset)} <= {1, 2, 8}


def _tensors(dataset: CachedDataset) -> list[Any]:
    from safetensors.torch import load_file

    return [tensor for path in dataset.shards() for tensor in load_file(path).values()]


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_models_for_edits_and_clips_give_the_same_numbers_from_a_cache(name: str, tmp_path: Path) -> None:
    dataset, settings = EMBEDDED[name]
    folder = assets_path(f"datasets/{dataset}")
    rows = (folder / "metadata.csv").read_text().splitlines()[:4]
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    source = {"dataset_base_path": folder, "dataset_metadata_path": tmp_path / "rows.csv", "model": name, **settings}
    more = {"max_steps": 3, "batch_size": 1}
    plain = trained(tmp_path / "plain", cache=False, mixed_precision="no", **source, **more)
    make_cache(CacheOptions(**source, output_path=tmp_path / "cache", mixed_precision="no", device="cpu"))
    again = trained(tmp_path / "again", from_cache=tmp_path / "cache", mixed_precision="no", **more)
    assert distance(plain, again, steps=3) == 0
    assert CachedDataset(tmp_path / "cache").manifest.counts["entries"] == 3


@pytest.mark.parametrize("trained_components", ["text_encoder", "dit,vae"])
def test_an_early_unit_that_is_trained_moves_to_every_step(
    model: str, data: Path, tmp_path: Path, trained_components: str
) -> None:
    settings = {"lora_rank": None, "trainable_models": trained_components, "learning_rate": 1e-4, "max_steps": 4}
    if trained_components == "text_encoder":
        settings["find_unused_parameters"] = True
    source = {"model": model, "dataset_base_path": data}
    plain = trained(tmp_path / "plain", cache=False, **source, **settings)
    if trained_components != "text_encoder":
        assert distance(plain, trained(tmp_path / "auto", **source, **settings), steps=4) == 0
    cache = cached(tmp_path / "cache", model, data, trainable_models=trained_components)
    assert distance(plain, trained(tmp_path / "again", from_cache=cache, **settings), steps=4) == 0
