"""Infinite gradients, and training that trains nothing, stop a run."""

from __future__ import annotations

import json

import pytest
import torch

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.training.state.snapshot import Snapshots
from tests.dsctl_core.training.loop.test_loop import ROWS
from tests.dsctl_core.training.runs import Drawing, train


class Exploding(Drawing):
    """Has a finite loss whose gradient is infinite where the weight is zero, from the `after`-th call on."""

    def __init__(self, after=0):
        super().__init__()
        self.after = after

    def forward(self, data):
        loss = super().forward(data)
        self.after -= 1
        return loss + (self.pipe.dit.bias * 0).sqrt().sum() if self.after < 0 else loss


def test_an_infinite_gradient_stops_the_run_before_the_update(tmp_path):
    module = Exploding()
    before = {name: weight.clone() for name, weight in module.trainable_parameters()}
    with pytest.raises(
        DsctlError, match=r"the gradient of step 1 is nan, though its loss is finite on row \d"
    ) as caught:
        train(tmp_path, module=module, max_steps=3)
    assert "no step is saved yet" in caught.value.problem
    assert all(torch.equal(before[name], weight) for name, weight in module.trainable_parameters())


def test_the_last_good_checkpoint_is_named_and_the_metrics_are_kept(tmp_path):
    with pytest.raises(DsctlError, match="the gradient of step 7 is nan") as caught:
        train(tmp_path, module=Exploding(after=6), max_steps=9, save_steps=2)
    assert f"the last good checkpoint is {tmp_path / 'step-6.safetensors'}" in caught.value.problem
    assert "--resume latest" in caught.value.hint
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    _, summary, _ = train(tmp_path, max_steps=9, save_steps=2, resume="latest")
    assert summary.steps == 9


def test_nobody_is_sent_to_a_state_that_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(Snapshots, "possible", False)  # as with DeepSpeed
    with pytest.raises(DsctlError, match="the gradient of step 3 is nan") as caught:
        train(tmp_path, module=Exploding(after=2), max_steps=9, save_steps=2)
    assert f"the last good checkpoint is {tmp_path / 'step-2.safetensors'}" in caught.value.problem
    assert "--resume" not in caught.value.hint


def test_every_sample_of_the_step_is_named(tmp_path):
    with pytest.raises(DsctlError) as caught:
        train(tmp_path, module=Exploding(after=3), accumulate=4, max_steps=3)
    named = caught.value.problem.partition(" on ")[2].partition(";")[0]
    assert len(set(named.split(", "))) == 4


def test_a_loss_that_is_not_a_number_names_the_last_good_checkpoint(tmp_path):
    rows = [dict(row) for row in ROWS]
    rows[2]["x"] = [float("inf")] * 3
    with pytest.raises(DsctlError, match=r"the loss of step \d is (inf|nan) on row 2; nothing was updated") as caught:
        train(tmp_path, rows=rows, max_steps=8, save_steps=1, batch_size=1)
    assert "checkpoint is" in caught.value.problem or "no step is saved yet" in caught.value.problem


class Idle(Drawing):
    """Has a loss that does not depend on what is trained, in one way or another."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, data):
        if self.how == "zero":
            return (self.pipe.dit.weight * 0).sum() + 1
        if self.how == "another":
            return (torch.ones(1, requires_grad=True) * 2).sum()
        return torch.ones(())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("zero", r"gradient of every trained weight is zero \(1 of 2 have one\)"),
        ("another", "none of the trained weights has a gradient"),
        ("none", "the loss of step 1 depends on no trained weight"),
    ],
)
def test_a_run_that_trains_nothing_is_an_error_at_the_first_step(tmp_path, how, message):
    with pytest.raises(UsageError, match=message) as caught:
        train(tmp_path / "out", module=Idle(how), max_steps=3)
    assert "--lora-target-modules" in caught.value.hint
    assert list((tmp_path / "out").iterdir()) == []


def test_one_weight_with_a_gradient_is_enough(tmp_path):
    class Half(Drawing):
        def forward(self, data):
            return self.pipe.dit.bias.square().sum() + self.pipe.dit.weight.sum() * 0 + self.pipe.dit.bias.sum()

    _, summary, _ = train(tmp_path, module=Half(), max_steps=2)
    assert summary.steps == 2
