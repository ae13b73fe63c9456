"""Options of the optimizer and of its learning rate: how they are written, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dsctl_core.errors import UsageError
from dsctl_core.options import OptimizerOptions, TrainOptions
from dsctl_core.options.optimizer import OPTIMIZERS


def arguments(**values: Any) -> dict[str, Any]:
    return {setting.name: setting.value for setting in OptimizerOptions(**values).optimizer_args}


@pytest.mark.parametrize(
    "given",
    [
        ["betas=(0.9, 0.99)", "eps=1e-6"],
        "betas=(0.9,0.99),eps=1e-6",
        ["betas=(0.9,0.99),eps=1e-6"],
        ("betas = (0.9, 0.99)", "eps = 1e-6"),
    ],
)
def test_arguments_can_be_repeated_or_listed_with_commas(given: Any):
    assert arguments(optimizer_args=given) == {"betas": (0.9, 0.99), "eps": 1e-6}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("3", 3),
        ("true", True),
        ("False", False),
        ("none", None),
        ("[1, 2]", [1, 2]),
        ("adamw", "adamw"),
    ],
)
def test_values_are_read_as_python_reads_them(text: str, value: Any):
    read = arguments(optimizer_args=[f"x={text}"])["x"]
    assert read == value
    assert type(read) is type(value)


def test_the_settings_survive_run_json():
    options = OptimizerOptions(optimizer_args="betas=(0.9,0.99),eps=1e-6")
    dumped = json.loads(json.dumps(options.model_dump(mode="json")))
    assert dumped["optimizer_args"] == ["betas=(0.9,0.99)", "eps=1e-6"]
    assert OptimizerOptions.resolved(dumped, ["optimizer_args"]) == options


def test_a_short_name_is_accepted_in_any_case_and_any_class_by_its_path():
    assert OptimizerOptions(optimizer="AdamW").optimizer == "adamw"
    assert OptimizerOptions(optimizer="some.package.Class", learning_rate=1).optimizer == "some.package.Class"


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_short_name_has_a_usual_rate_or_asks_for_one(name: str):
    known = OPTIMIZERS[name]
    if known.rate is None and known.rate_scale is None:
        with pytest.raises(UsageError, match="without --learning-rate"):
            OptimizerOptions(optimizer=name)
    assert OptimizerOptions(optimizer=name, learning_rate=0.1).learning_rate == 0.1


@pytest.mark.parametrize(
    ("values", "problem", "hint"),
    [
        ({"optimizer": "adamv"}, "unknown optimizer 'adamv'", "did you mean 'adamw'?"),
        ({"optimizer": "mine"}, "unknown optimizer 'mine'", "any package.Class"),
        ({"optimizer": "torch..SGD"}, "unknown optimizer", ""),
        ({"optimizer": "some.package.Class"}, "without --learning-rate", "give --learning-rate too"),
        ({"optimizer_args": "eps"}, "'eps' does not have the form KEY=VALUE", "KEY=VALUE"),
        ({"optimizer_args": "eps="}, "'eps=' does not have the form KEY=VALUE", "KEY=VALUE"),
        ({"optimizer_args": "eps=1,eps=2"}, "sets eps twice", "once"),
        ({"optimizer_args": "lr=1"}, "--optimizer-args sets lr", "--learning-rate"),
        ({"optimizer_args": "weight_decay=1"}, "--optimizer-args sets weight_decay", "--weight-decay"),
        ({"lr_scheduler": "cosin"}, "--lr-scheduler is 'cosin'", "did you mean 'cosine'?"),
        (
            {"lr_warmup_steps": 10},
            "--lr-warmup-steps has no effect with --lr-scheduler constant",
            "constant_with_warmup",
        ),
        ({"lr_scheduler": "constant_with_warmup"}, "no steps to warm up in", "--lr-warmup-steps"),
        ({"lr_scheduler": "cosine", "lr_warmup_steps": 2.5}, "neither a number of steps nor a share", "0.05"),
        ({"lr_scheduler": "cosine", "lr_num_cycles": 3}, "--lr-num-cycles has no effect", "cosine_with_restarts"),
        ({"lr_scheduler": "linear", "lr_power": 2}, "--lr-power has no effect", "polynomial"),
        ({"weight_decay": -1}, "--weight-decay is -1", "at least 0"),
    ],
)
def test_what_cannot_be_or_has_no_effect_is_refused(values: dict, problem: str, hint: str):
    with pytest.raises(UsageError) as caught:
        OptimizerOptions(**values)
    assert problem in caught.value.problem
    assert hint in (caught.value.hint or "")


def test_the_options_are_those_of_train():
    assert set(OptimizerOptions.model_fields) <= set(TrainOptions.flat_fields())
