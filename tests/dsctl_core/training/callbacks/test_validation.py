"""Validation: rows that are never trained on, looked at in the same way at every step of every run."""

import json
import os
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.train import train
from dsctl_core.data import UnifiedDataset
from dsctl_core.errors import DsctlError
from dsctl_core.options import CacheOptions
from dsctl_core.training.callbacks.validation import LEVELS, TIMES, hold_out
from tests.dsctl_core.training.callbacks.test_samples import pixels
from tests.dsctl_core.training.test_run import options

SPLIT = {"validation_split": 0.5, "learning_rate": 1e-2}


def lines(folder, name="validation_loss"):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in found if name in line}


@pytest.fixture
def cache(tiny_folder, dataset_folder, tmp_path):
    make_cache(
        CacheOptions(model=str(tiny_folder), dataset_base_path=dataset_folder, output_path=tmp_path / "c", device="cpu")
    )
    return tmp_path / "c"


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.25, 1), (0.5, 2), (0.74, 3)])
def test_a_dataset_and_its_cache_hold_out_the_same_rows(dataset_folder, cache, share, count):
    training, held = hold_out(UnifiedDataset(dataset_folder, repeat=3), share)
    assert len(held.numbers) == count
    assert sorted([*training.numbers, *held.numbers]) == [0, 1, 2, 3]
    assert len(training) == 3 * (4 - count)
    for part, cached in zip((training, held), hold_out(CachedDataset(cache, 3), share), strict=True):
        assert [entry.row for entry in cached.entries] == list(part.numbers)
        assert {cached[i]["_row"] for i in range(len(cached))} == set(part.numbers)


def test_a_row_that_an_epoch_has_several_times_is_trained_on_or_held_out_once(tmp_path):
    for name in ("3_dog/a.png", "3_dog/b.png", "2_cat/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    training, held = hold_out(UnifiedDataset(tmp_path), 0.5)
    assert len(held.numbers) == len(set(held.numbers)) == 2
    assert set(training.numbers).isdisjoint(held.numbers)
    assert len(training.numbers) in (2, 3)


def test_a_share_that_leaves_nothing_to_train_on_is_refused(tiny_folder, dataset_folder, tmp_path):
    with pytest.raises(DsctlError, match=r"--validation-split 0.9 of 4 rows leaves none to train on"):
        train(options(tiny_folder, dataset_folder, tmp_path / "out", validation_split=0.9))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cached", [True, False])
def test_rows_held_out_are_never_trained_on(tiny_folder, dataset_folder, tmp_path, monkeypatch, cached):
    from dsctl_core.training.model.task_module import TaskModule

    trained, validated = set(), set()
    forward = TaskModule.forward

    def spied(self, data):
        for row in data if isinstance(data, list) else [data]:
            (validated if "_timestep" in row else trained).add(row["_row"])
        return forward(self, data)

    monkeypatch.setattr(TaskModule, "forward", spied)
    train(options(tiny_folder, dataset_folder, tmp_path / "out", max_steps=6, cache=cached, **SPLIT))
    held = set(hold_out(UnifiedDataset(dataset_folder), 0.5)[1].numbers)
    assert validated == held
    assert trained == {0, 1, 2, 3} - held


def test_the_same_model_has_the_same_validation_loss_at_every_step_of_every_run(
    tiny_folder, dataset_folder, cache, tmp_path
):
    kinds = {
        "a": {"learning_rate": 1e-12, "validation_every": 1},
        "cache off": {"cache": False},
        "other seed": {"seed": 3, "batch_size": 2},
        "checkpointing": {"use_gradient_checkpointing": True, "batch_size": LEVELS},
    }
    found = {}
    for name, kind in kinds.items():
        train(options(tiny_folder, dataset_folder, tmp_path / name, max_steps=3, **{**SPLIT, **kind}))
        found[name] = lines(tmp_path / name)
    cached = {"model": None, "dataset_base_path": None, "from_cache": cache}
    train(options(tiny_folder, None, tmp_path / "from cache", max_steps=1, **{**SPLIT, **cached}))
    found["from cache"] = lines(tmp_path / "from cache")
    first = found["a"][0]
    assert first > 0.01
    assert list(found["a"].values()) == pytest.approx([first] * 4, rel=1e-6)
    assert [losses[0] for losses in found.values()] == pytest.approx([first] * len(found), rel=1e-5)


def test_validating_changes_nothing_about_the_training(tiny_folder, dataset_folder, tmp_path):
    for name, every in (("a", 1), ("b", 5)):
        train(options(tiny_folder, dataset_folder, tmp_path / name, max_steps=5, validation_every=every, **SPLIT))
    assert lines(tmp_path / "a", "loss") == lines(tmp_path / "b", "loss")
    both = lines(tmp_path / "b")
    assert list(both) == [0, 5]
    assert {step: lines(tmp_path / "a")[step] for step in both} == both
    assert both[5] != both[0]


@pytest.mark.parametrize(
    ("given", "steps"),
    [({}, [0, 1, 2, 3, 4, 5]), ({"save_steps": 2}, [0, 2, 4, 5]), ({"validation_every": 3}, [0, 3, 5])],
)
def test_it_is_measured_as_often_as_asked_else_with_the_saves_else_ten_times(
    tiny_folder, dataset_folder, tmp_path, given, steps
):
    assert TIMES == 10
    train(options(tiny_folder, dataset_folder, tmp_path / "out", max_steps=5, **SPLIT, **given))
    assert list(lines(tmp_path / "out")) == steps


def test_a_loss_without_levels_is_taken_once_for_each_row(tiny_folder, tmp_path, monkeypatch):
    from dsctl_core.training.model.task_module import TaskModule
    from tests.dsctl_core.training.test_distill_runs import dataset
    from tests.dsctl_core.training.test_distill_runs import options as distilled

    taken, forward = [], TaskModule.forward

    def spied(self, data):
        taken.append(self.pipe.dit.training or torch.is_grad_enabled())
        return forward(self, data)

    monkeypatch.setattr(TaskModule, "forward", spied)
    folder = dataset(tmp_path / "data")
    values = {"dataset_base_path": folder, "max_steps": 1, "validation_split": 0.01, "batch_size": 1}
    train(distilled(tiny_folder, tmp_path / "out", **values))
    assert taken.count(False) == 2
    assert sorted(lines(tmp_path / "out")) == [0, 1]


def test_two_processes_measure_and_draw_what_one_does(python, tiny_folder, dataset_folder, repository, tmp_path):
    alone = [python, "-m"]
    launch = [*alone, "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(repository)}
    flags = ["--model", str(tiny_folder), "--dataset-base-path", str(dataset_folder), "--lora-rank", "2"]
    flags += [
        "--max-steps",
        "1",
        "--device",
        "cpu",
        "--validation-split",
        "0.7",
        "--track",
        "csv",
        "--sample-every",
        "1",
    ]
    flags += ["--sample-height", "32", "--sample-width", "32", "--sample-steps", "2", "--learning-rate", "1e-12"]
    for text in ("one", "two, more", "three"):
        flags += ["--sample-prompt", text]
    for name, start in (("two", launch), ("one", alone)):
        command = [*start, "dsctl", "train", *flags, "--output-path", str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert lines(tmp_path / "two") == pytest.approx(lines(tmp_path / "one"), rel=1e-6)
    drawn = sorted((tmp_path / "one" / "samples").iterdir())
    assert len(drawn) == 6
    for path in drawn:
        assert np.abs(pixels(path) - pixels(tmp_path / "two" / "samples" / path.name)).max() <= 1
    assert len((tmp_path / "two" / "metrics.csv").read_text().splitlines()) == 4
