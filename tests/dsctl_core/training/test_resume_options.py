"""Whole runs from options: a LoRA with its average and its cache goes on to the bit, and only as what it was."""

from __future__ import annotations

import json
import shutil

import pytest

from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.options import TrainOptions
from dsctl_core.training.state import compare as resume
from tests.dsctl_core.training.runs import metrics
from tests.dsctl_core.training.test_run import options

FULL = {
    "max_steps": 8,
    "save_steps": 2,
    "batch_size": 2,
    "height": 32,
    "width": 32,
    "ema_decay": 0.9,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 2,
}


def tensors(folder, name):
    return read_safetensors(folder / name)[0]


def test_a_lora_with_its_average_and_its_cache_goes_on_to_the_bit(tiny_folder, dataset_folder, tmp_path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(options(tiny_folder, dataset_folder, straight, **FULL))
    train(options(tiny_folder, dataset_folder, resumed, **FULL))
    # as if it had been killed in its seventh step
    shutil.rmtree(resumed / "state" / "step-8")
    (resumed / "step-8.safetensors").unlink()
    train(options(tiny_folder, dataset_folder, resumed, **FULL, resume="latest"))
    assert metrics(straight) == metrics(resumed)
    for name in ("step-8.safetensors", "step-8.ema.safetensors"):
        one, other = tensors(straight, name), tensors(resumed, name)
        assert one.keys() == other.keys()
        assert all(one[key].equal(other[key]) for key in one)
    told = json.loads((resumed / "run.json").read_text())
    assert [(each["step"], each["changed"]) for each in told["resumed"]] == [(6, {})]
    assert told["options"]["lora_rank"] == 2


@pytest.fixture
def saved(tiny_folder, dataset_folder, tmp_path):
    """The options of a run that has a state, to be changed."""

    def changed(**kwargs):
        return options(tiny_folder, dataset_folder, tmp_path / "out", **{"save_steps": 1, "max_steps": 1, **kwargs})

    train(changed())
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.5}, r"--learning-rate was 0\.0001, now it is 0\.5"),
        ({"lora_rank": 4}, "--lora-rank was 2, now it is 4"),
        ({"lora_target_modules": "to_q"}, "--lora-target-modules was not given, now it is to_q"),
        ({"height": 32, "width": 32}, "--height was not given, now it is 32; --width was not given, now it is 32"),
        ({"caption_dropout": 0.5}, r"--caption-dropout was 0\.0, now it is 0\.5"),
        ({"model": "tiny"}, "the model was"),
    ],
)
def test_a_changed_option_is_an_error_with_both_values(saved, change, message):
    with pytest.raises(UsageError, match=message) as caught:
        train(saved(max_steps=2, resume="latest", **change))
    assert "--allow-changed" in caught.value.hint


def test_a_changed_option_can_be_let_through_and_is_noted(saved, tmp_path):
    train(saved(max_steps=2, resume="latest", learning_rate=0.5, allow_changed="learning_rate"))
    told = json.loads((tmp_path / "out" / "run.json").read_text())
    assert told["resumed"][0]["changed"] == {"learning_rate": [1e-4, 0.5]}
    assert [line["lr"] for line in metrics(tmp_path / "out")] == [1e-4, 0.5]
    train(saved(max_steps=3, resume="latest", learning_rate=0.5))


FALLING = [
    {"lr_scheduler": "linear"},
    {"lr_scheduler": "cosine"},
    {"lr_scheduler": "polynomial"},
    {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 0.5},
]
STEADY = [{}, {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 1}]


@pytest.mark.parametrize("course", FALLING, ids=str)
def test_another_length_is_an_error_where_the_rate_follows_it(tiny_folder, dataset_folder, tmp_path, course):
    def asked(**kwargs):
        return options(tiny_folder, dataset_folder, tmp_path / "out", **{"cache": False, **course, **kwargs})

    train(asked(max_steps=3, save_steps=2))
    shutil.rmtree(tmp_path / "out" / "state" / "step-3")
    # 4 pictures: two epochs are 8 steps, and said to be so only when the dataset is counted
    for length, total in (({"max_steps": 6}, 6), ({"max_steps": None, "num_epochs": 2}, 8)):
        with pytest.raises(UsageError, match=rf"number of steps in all.* was 3, now it is {total}") as caught:
            train(asked(**length, resume="latest"))
        assert "--allow-changed max_steps" in caught.value.hint
    train(asked(max_steps=6, resume="latest", allow_changed="max_steps"))
    told = json.loads((tmp_path / "out" / "run.json").read_text())
    assert told["resumed"][0]["changed"] == {"max_steps": [3, 6]}
    rates = [line["lr"] for line in metrics(tmp_path / "out")]
    train(options(tiny_folder, dataset_folder, tmp_path / "six", cache=False, **course, max_steps=6))
    assert rates[2:] == [line["lr"] for line in metrics(tmp_path / "six")][2:]


@pytest.mark.parametrize("course", STEADY, ids=str)
def test_a_run_with_a_steady_rate_is_extended_freely(tiny_folder, dataset_folder, tmp_path, course):
    for length in ({"max_steps": 2}, {"max_steps": None, "num_epochs": 1, "resume": "latest"}):
        train(options(tiny_folder, dataset_folder, tmp_path / "out", **{"cache": False, **course, **length}))
    assert [line["step"] for line in metrics(tmp_path / "out")] == [1, 2, 3, 4]


def test_another_dataset_is_an_error_and_the_same_one_elsewhere_is_not(saved, dataset_folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(dataset_folder, elsewhere)
    train(saved(max_steps=2, resume="latest", dataset_base_path=elsewhere))
    table = elsewhere / "metadata.csv"
    table.write_text(table.read_text().replace("a red one", "a very red one"))
    with pytest.raises(UsageError, match=r"the dataset was [0-9a-f]{12}\.\.\., now it is"):
        train(saved(max_steps=3, resume="latest", dataset_base_path=elsewhere))


def test_what_changes_no_result_is_free(saved, tmp_path):
    train(
        saved(
            max_steps=2, resume="latest", dataset_num_workers=1, lora_format="comfyui", use_gradient_checkpointing=True
        )
    )
    assert [line["step"] for line in metrics(tmp_path / "out")] == [1, 2]


def test_a_second_run_over_the_first_is_refused_with_the_way_on(saved):
    with pytest.raises(DsctlError, match="already holds a run") as caught:
        train(saved(max_steps=2))
    assert "--resume latest" in caught.value.hint


def test_options_without_effect_are_refused(saved, tmp_path):
    with pytest.raises(UsageError, match="--allow-changed has no effect without --resume"):
        saved(allow_changed="seed")
    with pytest.raises(UsageError, match="--resume has no effect on sft:data_process"):
        saved(task="sft:data_process", resume="latest")


def test_every_option_that_is_not_compared_is_an_option():
    assert sorted(resume.FREE - set(TrainOptions.flat_fields())) == []
