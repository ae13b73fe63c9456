"""The optimizer that the options ask for, and what is said where it cannot be had."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.family import OwnPart
from dsctl_core.options import OptimizerOptions, TrainOptions
from dsctl_core.training.optim.optimizer import OptimizerPlan, learning_rate, plan_optimizer


def plan(**values: Any) -> OptimizerPlan:
    return plan_optimizer(OptimizerOptions(**{"learning_rate": 1e-3, **values}), 1e-3)


def steps(build: Any, count: int = 5) -> list[torch.Tensor]:
    """Return two weights after `count` updates with fixed gradients."""
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(5, 7, generator=generator)), nn.Parameter(torch.randn(3, generator=generator))]
    optimizer = build(weights)
    for _ in range(count):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return [weight.detach() for weight in weights]


def test_the_default_is_adamw_as_torch_has_it_on_every_weight():
    expected = steps(lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.01, foreach=False))
    assert len(expected) > 0
    for ours, theirs in zip(steps(plan()), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-7, rtol=0)


def test_adamw_takes_the_fused_kernel_unless_told_otherwise():
    weights = [nn.Parameter(torch.zeros(2))]
    assert plan()(weights).defaults["fused"] is True
    assert not plan(optimizer_args="foreach=true")(weights).defaults["fused"]


def test_arguments_and_weight_decay_reach_the_class():
    defaults = plan(optimizer_args="betas=(0.8,0.95),eps=1e-5", weight_decay=0.3)(
        [nn.Parameter(torch.zeros(2))]
    ).defaults
    assert defaults["betas"] == (0.8, 0.95)
    assert (defaults["eps"], defaults["weight_decay"], defaults["lr"]) == (1e-5, 0.3, 1e-3)


def test_any_class_can_be_named_by_its_path():
    named = plan(optimizer="torch.optim.RMSprop", optimizer_args="momentum=0.5")
    expected = steps(lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5))
    assert len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(steps(named), expected, strict=True))


def test_adafactor_keeps_to_the_learning_rate_it_is_given():
    moved = [steps(plan_optimizer(OptimizerOptions(optimizer="adafactor"), rate), 1) for rate in (1e-3, 2e-3)]
    start = steps(plan(), 0)
    assert len(start) > 0
    for first, second, before in zip(*moved, start, strict=True):
        torch.testing.assert_close(second - before, 2 * (first - before), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_the_state_of_the_weights_is_in_float32(name: str):
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = plan(optimizer=name)([weight])
    weight.grad = torch.ones(4, 4)
    optimizer.step()
    tensors = [value for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor)]
    assert tensors
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


@pytest.mark.parametrize(
    ("values", "problem", "hint"),
    [
        ({"optimizer_args": "beta=1"}, "unknown argument of AdamW 'beta'", "did you mean 'betas'? it takes betas, eps"),
        ({"optimizer": "sgd", "optimizer_args": "eps=1"}, "unknown argument of SGD 'eps'", "momentum, dampening"),
        ({"optimizer_args": "betas=3"}, "betas to 3, which is not 2 numbers in brackets", "betas=(0.9,0.999)"),
        ({"optimizer_args": "eps=-1"}, "AdamW refuses lr=0.001, eps=-1", "--optimizer-args"),
        (
            {"optimizer": "torch.optim.Rprop", "weight_decay": 0.1},
            "Rprop has no weight decay",
            "leave --weight-decay out",
        ),
        ({"optimizer": "torch.optim.LBFGS"}, "needs a closure", "adamw"),
        ({"optimizer": "torch.optim.RMSProp"}, "there is no RMSProp in torch.optim", "torch.optim.RMSprop"),
        ({"optimizer": "torch.nn.Linear"}, "torch.nn.Linear is no torch optimizer", "torch.optim.Optimizer"),
    ],
)
def test_what_the_class_does_not_take_is_refused(values: dict, problem: str, hint: str):
    with pytest.raises(UsageError) as caught:
        plan(**values)([nn.Parameter(torch.zeros(2))])
    assert problem in caught.value.problem
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "install"),
    [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt"), ("lion", "lion-pytorch")],
)
def test_a_package_that_is_missing_is_named_with_the_line_that_installs_it(
    name: str, install: str, monkeypatch: pytest.MonkeyPatch
):
    for package in ("bitsandbytes", "prodigyopt", "lion_pytorch"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DsctlError) as caught:
        plan(optimizer=name)
    assert caught.value.hint == f"pip install {install}"


def test_any_other_package_that_is_missing_is_named():
    with pytest.raises(DsctlError, match="no_such_package.Best cannot be imported") as caught:
        plan(optimizer="no_such_package.Best")
    assert caught.value.hint == "install the package that has no_such_package"


def test_a_short_name_finds_its_class_where_the_package_is_there(monkeypatch: pytest.MonkeyPatch):
    package = ModuleType("lion_pytorch")
    package.Lion = torch.optim.SGD  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lion_pytorch", package)
    assert plan(optimizer="lion").kind is torch.optim.SGD


def usual_rate(defaults: dict[str, Any], **values: Any) -> float:
    options = TrainOptions(**{"model": "m", "dataset_base_path": "d", "output_path": "o", **values})
    family = SimpleNamespace(own_part=OwnPart(("own_blocks", "own_embedding"), 3e-5))
    resolved: Any = SimpleNamespace(defaults=defaults, side_networks=(), family=family)
    return learning_rate(options.optim, options.training.trainable_models or (), resolved)


@pytest.mark.parametrize(
    ("values", "rate"),
    [
        ({"lora_rank": 4}, 1e-4),
        ({"trainable_models": "dit"}, 1e-5),
        ({"trainable_models": "dit.own_blocks,dit_2.own_embedding"}, 3e-5),
        ({"trainable_models": "dit.own_blocks.3,dit.own_embedding", "lora_base_model": "vae"}, 3e-5),
        ({"trainable_models": "dit.own_blocks,dit.own_blocks_2"}, 1e-5),
        ({"lora_rank": 4, "learning_rate": 0.5}, 0.5),
        ({"lora_rank": 4, "optimizer": "lion"}, 1e-5),
        ({"lora_rank": 4, "optimizer": "prodigy"}, 1.0),
        ({"lora_rank": 4, "optimizer": "adafactor"}, 1e-4),
    ],
)
def test_without_a_rate_the_usual_one_of_the_optimizer_is_taken(values: dict, rate: float):
    assert usual_rate({}, **values) == pytest.approx(rate)


def test_a_preset_s_own_rate_is_for_a_lora():
    assert usual_rate({"learning_rate": 3e-3}, lora_rank=4) == 3e-3
    assert usual_rate({"learning_rate": 3e-3}, trainable_models="dit") == 1e-5
