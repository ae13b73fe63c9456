"""Runs of direct_distill: the same numbers with a cache and without, in both stages, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families import families
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.options import CacheOptions, TrainOptions
from tests.dsctl_core.training.conftest import picture
from tests.tiny_models import write_tiny_model

COLUMNS = "seed,rand_device,num_inference_steps,cfg_scale"
# The first three can stand in one batch; a step with guidance needs the negative prompt too.
CELLS = ["7,cpu,2,1", "8,cpu,2,1", "9,cpu,2,1", "7,cpu,3,2.5"]


def dataset(folder: Path, cells: list[str] = CELLS, columns: str = COLUMNS) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [f"image,prompt,{columns}"]
    for number, cell in enumerate(cells):
        picture(seed=number).save(folder / f"{number}.png")
        lines.append(f"{number}.png,a picture {number},{cell}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def options(model: Path | None, out: Path, **values: Any) -> TrainOptions:
    base = {"task": "direct_distill", "model": model and str(model), "lora_rank": 2, "max_steps": 8, "device": "cpu"}
    return TrainOptions(**{**base, "output_path": out, **values})


def trained(model: Path | None, out: Path, **values: Any) -> tuple[list[float], dict[str, Any]]:
    result = train(options(model, out, **values))
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines], read_safetensors(result.checkpoint)[0]


def assert_equal(a: tuple[list[float], dict[str, Any]], b: tuple[list[float], dict[str, Any]]) -> None:
    assert a[0] == b[0]
    assert a[1].keys() == b[1].keys()
    assert all(a[1][name].equal(b[1][name]) for name in a[1])


@pytest.mark.parametrize("family", families())
def test_a_cache_gives_the_same_numbers_in_every_way_of_making_it(family: str, tmp_path: Path):
    tiny_folder = write_tiny_model(family, tmp_path / "model")
    data = dataset(tmp_path / "data")
    source = {"dataset_base_path": data, "max_steps": 5}
    plain = trained(tiny_folder, tmp_path / "plain", cache=False, extra_inputs=COLUMNS, **source)
    assert len(set(plain[0])) == 5
    assert_equal(trained(tiny_folder, tmp_path / "own", **source), plain)
    assert (tmp_path / "own" / "cache").is_dir()
    make_cache(options(tiny_folder, tmp_path / "staged", task="direct_distill:data_process", dataset_base_path=data))
    staged = {"task": "direct_distill:train", "dataset_base_path": tmp_path / "staged"}
    assert_equal(trained(None, tmp_path / "second", max_steps=5, **staged), plain)


def test_a_cache_says_itself_which_task_it_is_for(tiny_folder: Path, tmp_path: Path):
    about = {"task": "direct_distill", "model": str(tiny_folder), "dataset_base_path": dataset(tmp_path / "data")}
    make_cache(CacheOptions(**about, output_path=tmp_path / "c", device="cpu"))
    plan = {"from_cache": tmp_path / "c", "lora_rank": 2, "max_steps": 2, "device": "cpu"}
    with pytest.raises(UsageError, match="on the task direct_distill, which goes through the levels of inference"):
        train(TrainOptions(**plan, output_path=tmp_path / "out", timestep_shift=2))
    assert train(TrainOptions(**plan, output_path=tmp_path / "out")).steps == 2


def test_the_cache_keeps_the_negative_side_only_where_there_is_guidance_and_never_the_noise(
    tiny_folder: Path, tmp_path: Path
):
    make_cache(
        options(
            tiny_folder,
            tmp_path / "c",
            task="direct_distill:data_process",
            dataset_base_path=dataset(tmp_path / "data"),
        )
    )
    cached = CachedDataset(tmp_path / "c")
    samples = {entry.row: cached.sample(entry) for entry in cached.entries}
    assert [sample["shared.seed"] for _, sample in sorted(samples.items())] == [[7], [8], [9], [7]]
    assert [any(name.startswith("nega.") for name in samples[row]) for row in range(4)] == [False] * 3 + [True]
    assert not any("noise" in name for sample in samples.values() for name in sample)


@pytest.mark.parametrize("cache", [True, False])
def test_batches_are_made_of_rows_that_agree(tiny_folder: Path, tmp_path: Path, cache: bool):
    losses, _ = trained(
        tiny_folder,
        tmp_path / "out",
        dataset_base_path=dataset(tmp_path / "data"),
        batch_size=3,
        cache=cache,
        max_steps=4,
    )
    assert len(losses) == 4


@pytest.mark.parametrize("make", [train, make_cache])
@pytest.mark.parametrize("missing", ["seed", "num_inference_steps", "cfg_scale"])
def test_a_missing_column_is_an_error_that_names_it_and_the_row_before_anything_is_loaded(
    tmp_path: Path, missing: str, make: Any
):
    names = COLUMNS.split(",")
    cells = [",".join(v for n, v in zip(names, cell.split(","), strict=True) if n != missing) for cell in CELLS]
    data = dataset(tmp_path / "data", cells, ",".join(n for n in names if n != missing))
    with pytest.raises(DsctlError, match=rf"metadata.csv row 1 \(line 2\) has no '{missing}'.*and 3 more rows"):
        make(options(Path("tiny"), tmp_path / "out", dataset_base_path=data))
    assert not (tmp_path / "out").exists()


def test_rows_that_cannot_be_read_are_left_out_when_asked(tiny_folder: Path, tmp_path: Path):
    data = dataset(tmp_path / "data", ["7,cpu,2,1", "8,cpu,none,1", "9,cpu,2,1"])
    with pytest.raises(DsctlError, match=r"row 2 \(line 3\) has the num_inference_steps 'none'"):
        train(options(tiny_folder, tmp_path / "out", dataset_base_path=data))
    result = train(options(tiny_folder, tmp_path / "out", dataset_base_path=data, on_bad_sample="skip", max_steps=2))
    assert result.skipped == 1
    assert "row 2" in (tmp_path / "out" / "skipped.jsonl").read_text()


@pytest.mark.parametrize("values", [{"timestep_shift": 2}, {"loss_weighting": "none"}, {"max_timestep_boundary": 0.5}])
def test_options_of_levels_that_are_drawn_have_no_effect_so_they_are_refused(tmp_path: Path, values: dict):
    data = dataset(tmp_path / "data")
    with pytest.raises(UsageError, match="on the task direct_distill, which goes through the levels of inference"):
        train(options(Path("tiny"), tmp_path / "out", dataset_base_path=data, **values))
