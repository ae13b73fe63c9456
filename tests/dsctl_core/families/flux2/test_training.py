"""FLUX.2 in training: with reference pictures, through a cache, as LoRA and whole; and what a cache of it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.infer import infer
from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.options import CacheOptions, InferOptions, TrainOptions
from dsctl_core.progress import NoProgress
from tests.dsctl_core.families.flux2.conftest import Pair


def noisy(path: Path, size: tuple[int, int], seed: int) -> str:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size).save(path)
    return path.name


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rows, two with one reference picture and two with two, the second one of another size."""
    folder = tmp_path_factory.mktemp("edits")
    rows = []
    for number in range(4):
        references = [
            noisy(folder / f"edit{number}{place}.png", size, 10 * number + place)
            for place, size in enumerate([(32, 32), (48, 32)][: 1 + number // 2])
        ]
        image = noisy(folder / f"{number}.png", (48, 32), 100 + number)
        edit_image: Any = references if number // 2 else references[0]
        rows.append({"image": image, "prompt": f"make it {number}", "edit_image": edit_image})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(pair: Pair, data: Path, out: Path, **values: Any) -> dict[str, Any]:
    return {
        "model": str(pair.folder),
        "dataset_base_path": data,
        "data_file_keys": "image,edit_image",
        "extra_inputs": "edit_image",
        "output_path": out,
        "device": "cpu",
        "mixed_precision": "no",
        **values,
    }


def trained(out: Path) -> tuple[list[float], dict[str, Any]]:
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    return losses, read_safetensors(next(out.glob("step-*.safetensors")))[0]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_training_on_reference_pictures_from_a_cache_equals_training_without(
    pair: Pair, data: Path, tmp_path: Path, batch_size: int
) -> None:
    common = {"lora_rank": 2, "max_steps": 4, "batch_size": batch_size, "dataset_repeat": 3, "seed": 1}
    train(TrainOptions(**settings(pair, data, tmp_path / "plain", cache=False, **common)))
    make_cache(CacheOptions(**settings(pair, data, tmp_path / "cache")))
    again = {"from_cache": tmp_path / "cache", "output_path": tmp_path / "again", "device": "cpu"}
    train(TrainOptions(**again, mixed_precision="no", **common))
    losses, weights = trained(tmp_path / "plain")
    cached_losses, cached_weights = trained(tmp_path / "again")
    assert losses == cached_losses
    assert weights.keys() == cached_weights.keys()
    assert all((weights[name] == cached_weights[name]).all() for name in weights)
    # Every layer of the family's list carries the LoRA: 12 of a double block, 2 of each of two single ones.
    assert len(weights) == 2 * (12 + 2 * 2)


@pytest.fixture(scope="module")
def mixed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of `data` with two more rows that have no reference picture: an empty list, and no key."""
    rows = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    rows[1:1] = [{"image": "3.png", "prompt": "without", "edit_image": []}, {"image": "2.png", "prompt": "none"}]
    table = tmp_path_factory.mktemp("mixed") / "mixed.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


@pytest.mark.parametrize("batch_size", [1, 2])
def test_rows_with_and_without_references_are_grouped_and_cached_like_any(
    klein: Pair, data: Path, mixed: Path, tmp_path: Path, batch_size: int
) -> None:
    common = {"lora_rank": 2, "num_epochs": 1, "batch_size": batch_size, "seed": 1}
    table = {"dataset_metadata_path": mixed}
    train(TrainOptions(**settings(klein, data, tmp_path / "plain", cache=False, **common, **table)))
    made = make_cache(CacheOptions(**settings(klein, data, tmp_path / "cache", batch_size=2, **table)))
    assert made.manifest.counts["entries"] == 6
    again = {"from_cache": tmp_path / "cache", "output_path": tmp_path / "again", "device": "cpu"}
    train(TrainOptions(**again, mixed_precision="no", **common))
    losses, _ = trained(tmp_path / "plain")
    assert losses == trained(tmp_path / "again")[0]
    assert len(losses) == {1: 6, 2: 3}[batch_size]
    assert all(np.isfinite(losses))
    cached = CachedDataset(tmp_path / "cache")
    without = [cached.sample(entry)["shared.edit_latents"] is None for entry in cached.entries]
    assert without == [False, True, True, False, False, False]


def test_rows_without_references_train_as_a_dataset_without_the_column(klein: Pair, data: Path, tmp_path: Path) -> None:
    table = tmp_path / "none.csv"
    table.write_text("image,edit_image,prompt\n0.png,,a\n1.png,,b\n")
    common = {"lora_rank": 2, "num_epochs": 1, "seed": 1, "cache": False, "dataset_metadata_path": table}
    train(TrainOptions(**settings(klein, data, tmp_path / "with", **common)))
    plain = {**settings(klein, data, tmp_path / "without", **common), "data_file_keys": "image", "extra_inputs": ()}
    train(TrainOptions(**plain))
    assert trained(tmp_path / "with")[0] == trained(tmp_path / "without")[0]


def test_a_column_of_references_that_is_read_as_text_is_named(klein: Pair, data: Path, tmp_path: Path) -> None:
    options = {**settings(klein, data, tmp_path / "out", lora_rank=2, cache=False), "data_file_keys": "image"}
    with pytest.raises(
        DsctlError, match="edit_image, whose column has files such as 'edit00.png', but they are not"
    ) as caught:
        train(TrainOptions(**options))
    assert "--data-file-keys image,edit_image" in str(caught.value.hint)


def test_the_reference_pictures_count_in_training(klein: Pair, data: Path, tmp_path: Path) -> None:
    common = {"lora_rank": 2, "max_steps": 1, "seed": 1, "cache": False}
    train(TrainOptions(**settings(klein, data, tmp_path / "with", **common)))
    without = {**settings(klein, data, tmp_path / "without", **common), "data_file_keys": "image", "extra_inputs": ()}
    train(TrainOptions(**without))
    assert trained(tmp_path / "with")[0] != trained(tmp_path / "without")[0]


def test_a_row_without_its_reference_picture_is_named(klein: Pair, data: Path, tmp_path: Path) -> None:
    options = {**settings(klein, data, tmp_path / "out", lora_rank=2), "data_file_keys": "image"}
    (tmp_path / "metadata.jsonl").write_text('{"image": "0.png", "prompt": "a"}\n')
    options["dataset_metadata_path"] = tmp_path / "metadata.jsonl"
    with pytest.raises(DsctlError, match="no 'edit_image'"):
        train(TrainOptions(**options))


def test_full_training_of_the_transformer_gives_its_published_names(dev: Pair, data: Path, tmp_path: Path) -> None:
    options = settings(
        dev, data, tmp_path / "out", trainable_models="dit", max_steps=2, use_gradient_checkpointing=True
    )
    train(TrainOptions(**options))
    losses, weights = trained(tmp_path / "out")
    assert all(np.isfinite(losses))
    assert set(weights) == set(dev.official.transformer.state_dict())


@pytest.mark.parametrize("offload", [False, True])
def test_gradient_checkpointing_changes_no_number(klein: Pair, data: Path, tmp_path: Path, offload: bool) -> None:
    common = {"lora_rank": 2, "max_steps": 2, "seed": 1, "cache": False}
    train(TrainOptions(**settings(klein, data, tmp_path / "plain", **common)))
    flags = {"use_gradient_checkpointing": True, "use_gradient_checkpointing_offload": offload}
    train(TrainOptions(**settings(klein, data, tmp_path / "checkpointed", **common, **flags)))
    (losses, weights), (other_losses, others) = trained(tmp_path / "plain"), trained(tmp_path / "checkpointed")
    assert losses == pytest.approx(other_losses, abs=1e-6)
    assert all((weights[name] - others[name]).abs().max() < 1e-6 for name in weights)


def test_a_sample_of_1024_pixels_takes_at_most_half_of_what_it_takes_elsewhere(klein: Pair, tmp_path: Path) -> None:
    noisy(tmp_path / "large.png", (1024, 1024), 0)
    (tmp_path / "metadata.csv").write_text("image,prompt\nlarge.png,a large picture\n")
    plain = {"model": str(klein.folder), "dataset_base_path": tmp_path, "device": "cpu", "mixed_precision": "bf16"}
    make_cache(CacheOptions(**plain, output_path=tmp_path / "cache"))
    dataset = CachedDataset(tmp_path / "cache")
    size = sum(path.stat().st_size for path in dataset.shards())
    assert size <= 0.5 * 2.44e6, "a cache of DiffSynth has 2.44 MB for such a sample"
    assert size > 2 * 128 * 64 * 64, "the latents alone"
    sample = dataset.sample(dataset.entries[0])
    assert {name.partition(".")[2] for name in sample if sample[name] is not None} == {
        "embedded_guidance",
        "height",
        "input_latents",
        "prompt_embeds",
        "rand_device",
        "width",
    }
    reckoned = sum(klein.ours.family.cache_bytes(klein.ours.dit.config, 1024, 1024, 1, 15))
    assert size == pytest.approx(reckoned, rel=0.05)


class Notes(NoProgress):
    """Remembers what a person would be told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.mark.parametrize(("preset", "base"), [("flux2-klein-4b", "flux2-klein-base-4b"), ("flux2-klein-base-4b", None)])
def test_training_on_distilled_weights_warns_and_names_the_base(
    data: Path, tmp_path: Path, preset: str, base: str | None
) -> None:
    progress = Notes()
    options = TrainOptions(
        model=preset, dataset_base_path=data, lora_rank=2, output_path=tmp_path / "out", device="cpu", cache=False
    )
    with pytest.raises(DsctlError, match="dsctl download|is not in"):  # its weights are not here
        train(options, progress)
    warned = [note for note in progress.notes if note.startswith("Warning")]
    assert len(warned) == (base is not None)
    assert all(f"{preset} is distilled" in note and str(base) in note for note in warned)


def test_infer_edits_pictures_at_the_size_of_the_first(dev: Pair, tmp_path: Path) -> None:
    for number, size in enumerate([(70, 40), (32, 32)]):
        noisy(tmp_path / f"{number}.png", size, number)
    common = {"model": str(dev.folder), "prompt": "a", "num_inference_steps": 1, "device": "cpu"}
    references = (tmp_path / "0.png", tmp_path / "1.png")
    made = infer(InferOptions(**common, edit_image=references, embedded_guidance=2.0, output=tmp_path / "a.png"))
    with Image.open(made.files[0]) as picture:
        assert picture.size == (64, 32)
        about = json.loads(picture.text["parameters"])
    assert about["edit_image"] == [str(path) for path in references]
    assert (about["embedded_guidance"], about["cfg_scale"]) == (2.0, 1.0)
    sized = infer(InferOptions(**common, edit_image=references, height=48, width=48, output=tmp_path / "b.png"))
    with Image.open(sized.files[0]) as picture:
        assert picture.size == (48, 48)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"edit_image": ("x.png",)}, "--edit-image has no effect"), ({"embedded_guidance": 2}, "no effect on Qwen-Image")],
)
def test_a_family_that_takes_no_such_input_says_so(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DsctlError, match=message):
        infer(InferOptions(model="tiny", prompt="a", device="cpu", **values))


def test_a_model_folder_has_the_defaults_of_its_kind(klein: Pair, dev: Pair, tmp_path: Path) -> None:
    from dsctl_core.families.resolve import resolve_model

    assert resolve_model(str(klein.folder)).defaults["cfg_scale"] == 4.0
    assert resolve_model(str(dev.folder)).defaults["cfg_scale"] == 1.0
    index = json.loads((klein.folder / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "is_distilled": True}))
    assert resolve_model(str(tmp_path)).defaults["num_inference_steps"] == 4


@pytest.mark.parametrize("cell", ["edit00.png", ["edit00.png", "edit01.png"]])
@pytest.mark.parametrize("command", [train, make_cache])
def test_a_picture_that_is_not_to_be_loaded_is_refused_before_anything_is_encoded(
    pair: Pair, data: Path, tmp_path: Path, cell: Any, command: Any
):
    row = {"image": str(data / "0.png"), "prompt": "a", "edit_image": cell}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    changes = {"data_file_keys": "image", "allow_outside": True, "dataset_base_path": tmp_path / "data"}
    values = settings(pair, data, tmp_path / "out", **changes)
    options = TrainOptions(**values, lora_rank=2, max_steps=1) if command is train else CacheOptions(**values)
    with pytest.raises(UsageError, match="--extra-inputs has edit_image, whose column has files such as") as caught:
        command(options)
    assert caught.value.hint == "give --data-file-keys image,edit_image too"
    assert not (tmp_path / "out").exists()
