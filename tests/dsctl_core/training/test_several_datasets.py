"""Several datasets in one run: their shares, their own settings, one cache, exact resuming, and what they keep."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.train import train
from dsctl_core.data import UnifiedDataset
from dsctl_core.data.several import SeveralDatasets
from dsctl_core.errors import DsctlError
from dsctl_core.files.png import about_picture
from dsctl_core.lora.layers import tuner_layers
from dsctl_core.options import CacheOptions, CallbackOptions, TrainOptions
from dsctl_core.options.datasets import DatasetTable
from dsctl_core.training.callbacks.sample_prompts import captions_of, sample_prompts
from dsctl_core.training.model.task_module import TaskModule
from tests.dsctl_core.training.conftest import picture
from tests.dsctl_core.training.runs import metrics

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def things(tmp_path: Path) -> Path:
    """Two pictures of 32x32 without captions."""
    folder = tmp_path / "things"
    folder.mkdir()
    for number in range(2):
        picture(32, 32, seed=10 + number).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def run(tiny_folder: Path, tmp_path: Path) -> Run:
    def start(name: str, **options: Any) -> list[dict[str, Any]]:
        base = {"model": str(tiny_folder), "device": "cpu", "lora_rank": 2, "learning_rate": 0.01, "max_steps": 4}
        train(TrainOptions(**{**base, "output_path": tmp_path / name, **options}))
        return metrics(tmp_path / name)

    return start


def plain(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if not name.startswith("loss.")} for line in lines]


def test_one_table_is_the_same_run_as_its_flags(run: Run, dataset_folder: Path):
    flags = run("flags", dataset_base_path=dataset_folder, dataset_repeat=2, caption_prefix="zq", batch_size=2)
    table = {"path": str(dataset_folder), "repeat": 2, "caption_prefix": "zq"}
    lines = run("table", dataset=[table], batch_size=2)
    assert plain(lines) == flags
    assert all(line["loss.pictures"] == pytest.approx(line["loss"]) for line in lines)


def test_samples_have_the_captions_of_all_datasets_and_the_files_of_each(
    run: Run, dataset_folder: Path, things: Path, tmp_path: Path
):
    (things / "metadata.csv").write_text("image,prompt,control_image\n0.png,a thing,1.png\n", encoding="utf-8")
    tables = [{"path": str(dataset_folder)}, {"path": str(things), "caption_prefix": "zq"}]
    run("samples", dataset=tables, max_steps=1, sample_every=1, sample_steps=1, sample_height=32, sample_width=32)
    drawn = [about_picture(path)["prompt"] for path in sorted((tmp_path / "samples/samples").rglob("*.png"))]
    assert "zq a thing" in drawn and len(set(drawn)) > 1
    dataset = SeveralDatasets([UnifiedDataset(each["path"]) for each in tables], list(map(DatasetTable.parse, tables)))
    rows = {row["prompt"]: row for row in captions_of(dataset, ["control_image"])}
    (shown,) = sample_prompts(
        CallbackOptions(sample_every=1, sample_height=32, sample_width=32),
        {"num_inference_steps": 1, "cfg_scale": 1.0},
        None,
        [rows["a thing"]],
        ["control_image"],
        pictures=["control_image"],
    )
    expected = Image.open(things / "1.png").convert("RGB")
    assert shown.with_pictures(["control_image"], 16).pictures["control_image"].tobytes() == expected.tobytes()


def test_a_cache_of_several_datasets_gives_the_numbers_of_none(
    run: Run, dataset_folder: Path, things: Path, tiny_folder: Path, tmp_path: Path
):
    tables = [
        {"path": str(dataset_folder), "weight": 3, "max_timestep_boundary": 0.5, "height": 32, "width": 32},
        {"path": str(things), "weight": 1, "caption": "a thing", "regularization": True, "loss_weight": 0.25},
    ]
    settings = {"batch_size": 2, "gradient_accumulation_steps": 2, "validation_split": 0.3, "seed": 5}
    without = run("without", dataset=tables, cache=False, **settings)
    assert run("own", dataset=tables, **settings) == without
    base = {"model": str(tiny_folder), "device": "cpu", "output_path": tmp_path / "cache"}
    made = make_cache(CacheOptions(**base, dataset=tables))
    assert made.manifest.counts["entries"] == 6
    assert run("from", model=None, from_cache=tmp_path / "cache", **settings) == without
    assert {name for line in without for name in line if "loss." in name} == {"loss.pictures", "loss.things"}
    again = make_cache(CacheOptions(**base, dataset=[{**table, "weight": 1} for table in tables]))
    assert again.encoded == 0


def test_a_resumed_run_goes_on_to_the_bit_and_a_changed_table_is_refused_in_one_line(
    run: Run, dataset_folder: Path, things: Path, tmp_path: Path
):
    for number in range(4):
        mask = Image.new("L", (48, 32), 255)
        mask.paste(0, (0, 0, 8 + 8 * number, 32))
        mask.save(dataset_folder / f"m{number}.png")
    rows = [f"{number}.png,m{number}.png,picture {number}" for number in range(4)]
    (dataset_folder / "metadata.csv").write_text("\n".join(["image,mask,prompt", *rows]) + "\n")
    config = tmp_path / "datasets.toml"

    def write(weight: float) -> None:
        config.write_text(
            f'[[dataset]]\npath = "{dataset_folder}"\nweight = {weight}\n'
            f'[[dataset]]\npath = "{things}"\nweight = 1\ncaption = "a thing"\nregularization = true\n'
            'target = "base"\ndata_file_keys = ["image"]\n'
        )

    write(2.5)
    masks = {"data_file_keys": "image,mask", "extra_inputs": "mask"}
    settings = {"dataset_config": config, "batch_size": 2, "save_steps": 2, **masks}
    straight = run("straight", **settings, max_steps=5)
    run("broken", **settings, max_steps=3)
    assert run("resumed", **settings, max_steps=5, resume=str(tmp_path / "broken" / "state" / "step-2")) == straight
    write(3)
    with pytest.raises(DsctlError) as caught:
        run("broken", **settings, max_steps=6, resume="latest")
    assert "weight of [[dataset]] pictures was 2.5, now it is 3" in caught.value.problem
    assert "--allow-changed pictures.weight" in (caught.value.hint or "")
    assert "\n" not in caught.value.problem


def noting_predictions(pipe: Any) -> list[torch.Tensor]:
    """Return the list to which every prediction of the network is added."""
    made: list[torch.Tensor] = []
    given = pipe.model_fn

    @functools.wraps(given)
    def model_fn(*args: Any, **inputs: Any) -> torch.Tensor:
        made.append(given(*args, **inputs))
        return made[-1]

    pipe.model_fn = model_fn
    return made


def test_the_target_of_the_base_is_its_own_prediction_so_a_fresh_lora_has_nothing_to_learn(load_pipe: Any):
    tables = [
        DatasetTable.parse({"path": "a", "loss_weight": 0.5}),
        DatasetTable.parse({"path": "b", "regularization": True, "target": "base", "loss_weight": 2}),
    ]
    module = TaskModule(load_pipe(), "sft", lora_base_model="dit", lora_rank=2, tables=tables)
    made = noting_predictions(module.pipe)
    rows = [
        {"image": picture(32, 32, seed), "prompt": "a thing", "seed": seed, "_row": seed, "_dataset": 1}
        for seed in range(2)
    ]
    assert module(rows) == 0
    base = made[0]
    made.clear()
    with torch.no_grad():
        for layer in tuner_layers(module.pipe.component("dit")).values():
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    changed = module(rows)
    changed.backward()
    assert float(changed.detach()) > 0
    assert module.sample_losses is not None
    assert torch.equal(changed.detach(), (module.sample_losses * 2).mean())
    assert torch.equal(made[0], base) and not made[0].requires_grad
    assert any(layer.lora_A["default"].weight.grad.abs().sum() > 0 for layer in tuner_layers(module.pipe.dit).values())
    learned = [{**row, "_dataset": 0} for row in rows]
    alone = torch.stack([module(row).detach() for row in learned])
    torch.testing.assert_close(module(learned).detach(), alone.mean())
    own = float(module(learned[0]).detach())
    assert own == pytest.approx(0.5 * float(module.sample_losses[0]))


def test_a_run_whose_first_steps_have_nothing_to_learn_goes_on_to_those_that_have(
    run: Run, dataset_folder: Path, things: Path
):
    base = {"path": str(things), "caption": "a thing", "regularization": True, "target": "base", "weight": 2}
    losses = [
        [line["loss"] for line in run(f"{seed}", seed=seed, dataset=[{"path": str(dataset_folder), "weight": 1}, base])]
        for seed in range(3)
    ]
    assert 0 in [each[0] for each in losses]
    assert all(max(each) > 0.1 for each in losses)


@pytest.mark.parametrize(
    ("tables", "options", "problem"),
    [
        (
            [{"path": "pictures", "weight": 2}, {"path": "things", "caption": "a thing", "weight": 1}],
            {"max_steps": None},
            "--max-steps is not given",
        ),
        ([{"path": "pictures"}, {"path": "./pictures"}], {}, r"two \[\[dataset\]\] are called pictures"),
        ([{"path": "pictures", "weight": 2}, {"path": "things"}], {}, "pictures has a weight, and things has none"),
        ([{"path": "pictures", "weight": 2}], {"max_steps": 2}, "weight of .* pictures has no effect: it is a share"),
        ([{"path": "things", "regularization": True}], {}, "every"),
        ([{"path": "pictures"}, {"path": "things"}], {}, "things has no metadata"),
        (
            [{"path": "pictures"}, {"path": "things", "caption": "a", "regularization": True, "target": "base"}],
            {"lora_rank": None, "trainable_models": "dit"},
            "needs the model as it was",
        ),
        ([{"path": "pictures"}], {"dataset_metadata_path": "a.csv"}, "--dataset-metadata-path has no effect"),
        (
            [{"path": "pictures", "min_timestep_boundary": 0.6}],
            {"max_timestep_boundary": 0.5},
            "pictures, 0.6 and 0.5, leave no level",
        ),
        ([{"path": "pictures"}], {"dataset_base_path": "pictures"}, "are both given"),
        (
            [{"path": "pictures", "min_timestep_boundary": 0.1}, {"path": "things", "caption": "a"}],
            {"task": "direct_distill"},
            "num_inference_steps",
        ),
    ],
)
def test_tables_that_cannot_be_trained_on_are_refused(
    tables: list[dict[str, Any]],
    options: dict[str, Any],
    problem: str,
    run: Run,
    dataset_folder: Path,
    things: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DsctlError, match=problem):
        run("out", dataset=tables, **options)
    assert not (tmp_path / "out").exists()


def test_run_json_has_the_tables_as_they_were_given(run: Run, dataset_folder: Path, tmp_path: Path):
    table = {"path": str(dataset_folder), "repeat": 3, "bucket_resolutions": ["32"]}
    run("out", dataset=[table], max_steps=1)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["options"]["dataset"] == [table]
