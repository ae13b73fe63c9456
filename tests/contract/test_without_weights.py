"""What is known of published weights without downloading them: sizes, licences, and what a run with them would take."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dsctl_core.checkpoint.build import published_component
from dsctl_core.commands import cache, train
from dsctl_core.commands.models import show_model
from dsctl_core.errors import DsctlError
from dsctl_core.families import families, load_family
from dsctl_core.family import Family, PublishedConfig
from dsctl_core.options import CacheOptions, ModelsShowOptions, TrainOptions
from dsctl_core.training.dry_run import simulated
from tests.tiny_models import write_tiny_model

KNOWN = [family for family in families().values() if family.parameters]
COUNTS = [(f, variant, name) for f in KNOWN for variant, counts in f.parameters.items() for name in counts]
DOWNLOADS = {
    "qwen-image": 57.7,
    "flux1-dev": 33.7,
    "flux2-klein-base-4b": 16.0,
    "flux2-klein-9b": 34.7,
    "flux2-dev": 112.6,
    "z-image": 20.5,
}  # GB


def test_these_families_are_known() -> None:
    assert {"qwen-image", "flux1", "flux2", "z-image", "wan"} <= {family.name for family in KNOWN}


@pytest.mark.parametrize(("family", "variant", "name"), COUNTS, ids=lambda each: getattr(each, "name", str(each)))
def test_the_published_config_has_the_published_number_of_parameters(
    family: Family, variant: str | None, name: str
) -> None:
    with torch.device("meta"):
        model = published_component(family, family.component(name), variant)
    assert model is not None
    assert sum(parameter.numel() for parameter in model.parameters()) == family.parameters[variant][name]


@pytest.mark.parametrize(("preset", "size"), DOWNLOADS.items())
def test_models_show_says_what_a_download_takes(preset: str, size: float) -> None:
    shown = show_model(ModelsShowOptions(name=preset))
    assert shown["download_bytes"] / 1e9 == pytest.approx(size, abs=0.05)
    assert shown["memory"]["encode"] + shown["memory"]["train"] == shown["download_bytes"]
    assert shown["license"] and shown["gated"] == (shown["license"] != "Apache-2.0")


def test_every_preset_whose_weights_are_known_has_a_licence() -> None:
    presets = [each for family in KNOWN for each in family.presets if each.folder or family.weight_bytes(each)]
    assert len(presets) > 8
    assert [preset.name for preset in presets if preset.license is None] == []


@pytest.fixture
def data(tmp_path: Path) -> str:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("red", "blue"):
        Image.new("RGB", (64, 64), name).save(folder / f"{name}.png")
    (folder / "metadata.csv").write_text("image,prompt\nred.png,red\nblue.png,a blue one\n", encoding="utf-8")
    return str(folder)


def as_if_published(family: Family, monkeypatch: pytest.MonkeyPatch, **changed: Any) -> str:
    """Let the sizes of the tiny model be the published ones, and return the name of a preset of them."""
    encoder = family.component("text_encoder").class_name
    preset = dataclasses.replace(
        next(preset for preset in family.presets if preset.model_id), name="a-preset", variant=None, model_id="a/model"
    )
    tiny = dataclasses.replace(
        family,
        **{
            "published": {name: family.tiny[name] for name in ("dit", "vae")},
            "encoders": {None: {"text_encoder": PublishedConfig(encoder, family.tiny["text_encoder"])}},
            "variants": {},
            "presets": (dataclasses.replace(preset, from_repositories={}),),
            **changed,
        },
    )
    monkeypatch.setattr("dsctl_core.families.families", lambda: {family.name: tiny})
    return "a-preset"


# Sums of the sizes of the published files, in GB, with the largest denoiser and all else in bfloat16.
FLOAT32 = {
    "wan2.1-t2v-1.3b": (28.91, 2.84, 11.62),
    "wan2.2-t2v-a14b": (126.18, 28.58, 11.62),
    "wan2.2-ti2v-5b": (34.18, 10.00, 12.77),
}


@pytest.mark.parametrize(("preset", "sizes"), FLOAT32.items())
def test_models_show_counts_weights_that_are_published_in_float32(preset: str, sizes: tuple[float, ...]) -> None:
    shown = show_model(ModelsShowOptions(name=preset))
    found = (shown["download_bytes"], shown["memory"]["train"], shown["memory"]["encode"])
    assert [each / 1e9 for each in found] == pytest.approx(sizes, abs=0.01)
    assert (shown["license"], shown["gated"]) == ("Apache-2.0", False)


@pytest.mark.parametrize("name", ["qwen-image", "flux2", "z-image", "wan"])
def test_a_dry_run_of_a_model_that_is_not_there_is_that_of_its_folder(
    name: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_model(name, tmp_path / "model")
    asked: dict[str, Any] = {"dataset_base_path": data, "device": "cpu", "output_path": "out", "lora_rank": 2}
    with_files = train.dry_run(TrainOptions(model=str(folder), **asked, num_epochs=2))
    preset = as_if_published(load_family(name), monkeypatch)
    without = train.dry_run(TrainOptions(model=preset, **asked, num_epochs=2))
    assert set(without.not_on_disk) == {"dit", "vae", "text_encoder"}
    assert with_files.not_on_disk == ()
    for part in ("weights", "gradients", "optimizer", "activations"):
        assert getattr(without.memory, part) == getattr(with_files.memory, part) > 0
    assert without.parameters == with_files.parameters
    # The tokenizer that stands in for a missing one adds no end token, which Wan's has.
    assert without.disk == pytest.approx(with_files.disk, rel=0.02 if name == "wan" else 0)
    assert without.fits and "fits" in without.verdict[0] and "text_encoder" in without.verdict[1]
    too_large = dataclasses.replace(without, available_memory=1)
    assert not too_large.fits and "does not fit" in too_large.verdict[0]
    assert not Path("out").exists() and not Path("models").exists()


def test_a_dry_run_of_a_cache_counts_what_the_cache_has(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"dataset_base_path": data, "device": "cpu", "output_path": "c", "model": "tiny"}
    found = cache.dry_run(CacheOptions(**asked))
    assert not Path("c").exists()
    made = cache.make_cache(CacheOptions(**asked))
    assert found.entries == made.manifest.counts["entries"] == 2
    assert found.cache == pytest.approx(made.manifest.bytes["tensors"], rel=0.1)  # prompts differ in length
    assert found.weights > 0 and found.peak >= found.process + found.weights
    preset = as_if_published(load_family("qwen-image"), monkeypatch)
    without = cache.dry_run(CacheOptions(**{**asked, "model": preset, "output_path": "d"}))
    assert set(without.not_on_disk) == {"vae", "text_encoder"} and not Path("models").exists()


def test_a_processor_that_is_not_there_has_a_stand_in(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published text encoder reads the picture as so many tokens, each as wide as it is published."""
    (Path(data) / "metadata.csv").write_text("image,edit_image,prompt\nred.png,blue.png,red\n", encoding="utf-8")
    asked: dict[str, Any] = {
        "dataset_base_path": data,
        "device": "cpu",
        "output_path": "c",
        "extra_inputs": "edit_image",
    }
    options = CacheOptions(model="qwen-image-edit-2511", data_file_keys="image,edit_image", **asked)
    found = cache.dry_run(options)
    assert set(found.not_on_disk) == {"vae", "text_encoder"} and found.weights > 16e9
    assert found.cache > (144 + 50) * 3584 * 4, "tokens of the prompt and of a picture of 384 x 384 pixels, in float32"
    # Of a config that is not known, no stand-in can be had.
    monkeypatch.setattr(simulated, "stand_in", lambda *_: None)
    with pytest.raises(DsctlError, match="needs its tokenizer") as caught:
        cache.dry_run(options)
    assert caught.value.hint == 'dsctl download Qwen/Qwen-Image-Edit-2511 --include "tokenizer/*"'


def test_a_part_without_a_published_config_is_named(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = as_if_published(load_family("qwen-image"), monkeypatch, encoders={})
    options = TrainOptions(model=preset, dataset_base_path=data, device="cpu", output_path="out", lora_rank=2)
    with pytest.raises(DsctlError) as caught:
        train.dry_run(options)
    assert "dsctl download" in (caught.value.hint or "")
