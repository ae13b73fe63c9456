"""The learning rate of every update: the first is never for nothing, a constant one is constant from the start."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from dsctl_core.errors import UsageError
from dsctl_core.options import OptimizerOptions
from dsctl_core.training.optim.lr_schedule import factors, plan_lr_schedule
from tests.dsctl_core.training.loop.test_loop import run

COURSES = ["linear", "cosine", "cosine_with_restarts", "polynomial"]


def course(total: int, **values: Any) -> list[float]:
    factor = factors(OptimizerOptions(**values), total, 1e-4)
    return [factor(done) for done in range(total)]


@pytest.mark.parametrize("name", COURSES)
def test_a_falling_rate_begins_in_full_and_ends_above_nothing(name: str):
    found = course(40, lr_scheduler=name)
    assert found[0] == 1
    assert 0 < found[-1] < 0.06
    if name != "cosine_with_restarts":
        assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("name", [*COURSES, "constant_with_warmup"])
def test_no_update_of_a_warm_up_has_no_rate_and_the_one_after_it_has_all(name: str):
    found = course(40, lr_scheduler=name, lr_warmup_steps=4)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert max(found) == 1


def test_the_shapes_are_what_they_are_called():
    linear, cosine = course(10, lr_scheduler="linear"), course(10, lr_scheduler="cosine")
    assert linear == pytest.approx([1 - n / 10 for n in range(10)])
    assert cosine == pytest.approx([0.5 + 0.5 * math.cos(math.pi * n / 10) for n in range(10)])
    polynomial = course(10, lr_scheduler="polynomial", lr_power=2)
    assert polynomial == pytest.approx([(1 - n / 10) ** 2 for n in range(10)], abs=2e-3)
    restarts = course(12, lr_scheduler="cosine_with_restarts", lr_num_cycles=3)
    assert restarts == pytest.approx(3 * restarts[:4])
    assert course(12, lr_scheduler="cosine_with_restarts") == pytest.approx(
        course(12, lr_scheduler="cosine_with_restarts", lr_num_cycles=2)
    )


def test_below_one_the_warm_up_is_a_share_of_all_steps():
    values = {"lr_scheduler": "constant_with_warmup"}
    assert course(40, **values, lr_warmup_steps=0.1) == course(40, **values, lr_warmup_steps=4)


@pytest.mark.parametrize("steps", [40, 100, 0.99])
def test_a_warm_up_that_leaves_nothing_is_refused(steps: float):
    with pytest.raises(UsageError, match="not below the run's 40 steps"):
        course(40, lr_scheduler="cosine", lr_warmup_steps=steps)


def test_a_rate_below_the_end_of_the_polynomial_is_refused():
    with pytest.raises(UsageError, match="does not suit this rate"):
        factors(OptimizerOptions(lr_scheduler="polynomial"), 10, 1e-8)


def rates(folder: Any, **values: Any) -> list[float]:
    accumulate, steps = values.pop("accumulate", 1), values.pop("max_steps", 8)
    plan = plan_lr_schedule(OptimizerOptions(**values))
    _, _, lines = run(folder, accumulate=accumulate, max_steps=steps, lr_scheduler=plan)
    return [line["lr"] for line in lines]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_schedule_counts_optimizer_updates(tmp_path: Any, accumulate: int):
    found = rates(tmp_path, lr_scheduler="linear", accumulate=accumulate)
    assert found == pytest.approx([1e-2 * (1 - n / 8) for n in range(8)])


def test_a_constant_rate_is_constant_from_the_first_step(tmp_path: Any):
    assert rates(tmp_path, lr_scheduler="constant") == [1e-2] * 8


def test_epochs_give_the_number_of_steps_as_well(tmp_path: Any):
    plan = plan_lr_schedule(OptimizerOptions(lr_scheduler="linear"))
    _, _, lines = run(tmp_path, accumulate=4, num_epochs=3, lr_scheduler=plan)
    assert [line["lr"] for line in lines] == pytest.approx([1e-2 * (1 - n / 6) for n in range(6)])


def test_a_schedule_goes_on_from_its_state_which_is_plain_numbers():
    plan = plan_lr_schedule(OptimizerOptions(lr_scheduler="cosine", lr_warmup_steps=3))
    assert plan is not None

    def build() -> tuple[Any, Any]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        return optimizer, plan(optimizer, 10)

    optimizer, schedule = build()
    seen = []
    for step in range(10):
        if step == 5:
            state = json.loads(json.dumps([optimizer.state_dict()["param_groups"], schedule.state_dict()]))
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    optimizer, schedule = build()
    optimizer.load_state_dict({"state": {}, "param_groups": state[0]})
    schedule.load_state_dict(state[1])
    for expected in seen[5:]:
        assert optimizer.param_groups[0]["lr"] == expected
        optimizer.step()
        schedule.step()
