"""Resuming is going on: a run that was stopped and resumed is, to the bit, the run that was not."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest
import torch

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.training.callbacks.base import TrainingHook
from dsctl_core.training.state.folder import state_folders
from tests.dsctl_core.training.loop.test_batches import BUCKETS
from tests.dsctl_core.training.loop.test_loop import ROWS
from tests.dsctl_core.training.runs import Drawing, finished, metrics, start, train


class Killed(BaseException):
    """Ends a run as a kill does: nothing is saved, nothing is finished."""


class KillAt(TrainingHook):
    """Kills the run after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, run, record):
        if record.step == self.step:
            raise Killed


def killed(folder, step, **settings):
    with pytest.raises(Killed):
        train(folder, hooks=[KillAt(step)], **settings)


def weights(folder, step=20):
    return read_safetensors(folder / f"step-{step}.safetensors")[0]


def assert_equal_runs(first, second, step=20):
    assert metrics(first) == metrics(second)
    one, other = weights(first, step), weights(second, step)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


SHAPES = {
    "one at a time": {},
    "batches and accumulation": {"batch_size": 2, "accumulate": 2},
    "an odd last step": {"batch_size": 3, "accumulate": 2},
    "several shapes": {"batch_size": 3, "buckets": BUCKETS},
    "worker processes": {"num_workers": 2, "batch_size": 2},
    "another optimizer": {"optimizer": lambda p: torch.optim.Adamax(p, lr=1e-2)},
    "momentum": {"optimizer": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True)},
    "a constant rate": {"lr_scheduler": None},
    "a rate that depends on the last": {
        "lr_scheduler": lambda o, total: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20)
    },
}


@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_ten_steps_a_kill_and_ten_more_are_twenty_to_the_bit(tmp_path, settings):
    train(tmp_path / "straight", max_steps=20, **settings)
    killed(tmp_path / "resumed", step=13, max_steps=20, **settings)
    assert len(metrics(tmp_path / "resumed")) == 13
    torch.manual_seed(123456)  # of the new process nothing may matter
    train(tmp_path / "resumed", max_steps=20, resume="latest", **settings)
    assert_equal_runs(tmp_path / "straight", tmp_path / "resumed")


def test_every_generator_of_the_process_goes_on_where_it_was(tmp_path):
    class Numbers(TrainingHook):
        def __init__(self, seed):
            random.seed(seed)
            np.random.seed(seed)
            self.values = []

        def on_step_end(self, run, record):
            numbers = random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()
            self.values.append(numbers)

    settings = {"save_steps": 4, "lr_scheduler": None}
    whole, first, second = [], [], []
    for folder, steps, seed, values in (("a", 8, 1, whole), ("b", 4, 1, first), ("b", 8, 2, second)):
        hook = Numbers(seed)
        train(
            tmp_path / folder, max_steps=steps, hooks=[hook], resume="latest" if values is second else None, **settings
        )
        values += hook.values
    assert [*first, *second] == whole
    assert len(set(whole)) == 8


def test_two_processes_go_on_as_they_would_have_and_one_can_take_over(python, tmp_path):
    finished(start(python, tmp_path / "straight", 20, processes=2))
    finished(start(python, tmp_path / "resumed", 10, processes=2))
    shutil.copytree(tmp_path / "resumed", tmp_path / "alone")
    finished(start(python, tmp_path / "resumed", 20, "latest", processes=2))
    assert_equal_runs(tmp_path / "straight", tmp_path / "resumed")
    finished(start(python, tmp_path / "alone", 20, "latest", 0, 5, 4))  # one process with batches of twice the size
    together, alone = ([line["loss"] for line in metrics(tmp_path / name)] for name in ("straight", "alone"))
    assert alone[:10] == together[:10]
    assert len(alone) == 20
    done = start(python, tmp_path / "alone", 30, "latest", 0, 5, 2)
    out, _ = done.communicate(timeout=300)
    assert done.returncode == 2
    assert "number of samples a step (processes x batch size x accumulation) was 4, now it is 2" in out


def test_samples_are_skipped_without_being_loaded(tmp_path):
    class Counting(list):
        loaded = []

        def __getitem__(self, index):
            self.loaded.append(index)
            return super().__getitem__(index)

    train(tmp_path, max_steps=6, save_steps=6)
    train(tmp_path, rows=Counting(ROWS), max_steps=8, resume="latest")
    assert len(Counting.loaded) == 2


def test_what_hooks_keep_comes_back_to_them(tmp_path):
    class Average(TrainingHook):
        def on_training_start(self, run):
            self.started_at, self.weight = run.step, run.model.pipe.dit.weight.detach().clone()

        def on_step_end(self, run, record):
            self.weight.lerp_(run.model.pipe.dit.weight.detach(), 0.1)

        def state(self):
            return {"weight": self.weight, "note": ("a", None, 0.1), 3: [1, True]}

        def load_state(self, state):
            assert state.keys() == {"weight", "note", 3}
            assert (state["note"], state[3]) == (("a", None, 0.1), [1, True])
            self.weight = state["weight"]

    whole, half, rest = ((Average(), Average()) for _ in range(3))
    train(tmp_path / "straight", max_steps=10, hooks=whole)
    train(tmp_path / "resumed", max_steps=5, hooks=half)
    train(tmp_path / "resumed", max_steps=10, hooks=rest, resume="latest")
    assert [each.started_at for each in rest] == [5, 5]
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(whole, rest, strict=True))


def test_a_bfloat16_weight_with_a_float32_state_comes_back_to_the_bit(tmp_path):
    class InFloat32(torch.optim.Optimizer):
        """Gradient descent with momentum held more precisely than the weights."""

        def __init__(self, params):
            super().__init__(params, {"lr": 1e-2})

        @torch.no_grad()
        def step(self, closure=None):
            for parameter in self.param_groups[0]["params"]:
                state = self.state[parameter]
                state.setdefault("momentum", torch.zeros_like(parameter, dtype=torch.float32))
                state["momentum"].mul_(0.9).add_(parameter.grad.float())
                parameter.sub_((0.01 * state["momentum"]).to(parameter.dtype))

    class Small(Drawing):
        def __init__(self):
            super().__init__()
            self.pipe.dit.bfloat16()

        def forward(self, data):
            return (self.pipe.dit(torch.tensor([data["x"]], dtype=torch.bfloat16)) - 1).square().float().mean()

    settings = {"optimizer": InFloat32, "lr_scheduler": None}
    train(tmp_path / "straight", module=Small(), max_steps=20, **settings)
    killed(tmp_path / "resumed", step=12, module=Small(), max_steps=20, **settings)
    train(tmp_path / "resumed", module=Small(), max_steps=20, resume="latest", **settings)
    assert weights(tmp_path / "straight")["weight"].dtype == torch.bfloat16
    assert_equal_runs(tmp_path / "straight", tmp_path / "resumed")


def test_a_run_is_extended_by_steps_or_by_epochs(tmp_path):
    train(tmp_path / "straight", num_epochs=3, save_steps=None, lr_scheduler=None)
    train(tmp_path / "resumed", num_epochs=1, save_steps=None, lr_scheduler=None)
    train(tmp_path / "resumed", max_steps=20, save_steps=None, lr_scheduler=None, resume="latest")
    train(tmp_path / "resumed", num_epochs=3, save_steps=None, lr_scheduler=None, resume="latest")
    assert_equal_runs(tmp_path / "straight", tmp_path / "resumed", step=24)
    with pytest.raises(DsctlError, match="is done: 24 of 24 steps") as caught:
        train(tmp_path / "resumed", num_epochs=3, save_steps=None, lr_scheduler=None, resume="latest")
    assert "--max-steps" in caught.value.hint


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 2e-2}, r"--learning-rate was 0\.01, now it is 0\.02"),
        ({"seed": 4}, "--seed was 0, now it is 4"),
        ({"max_grad_norm": 0.5}, r"--max-grad-norm was 1\.0, now it is 0\.5"),
        ({"batch_size": 2}, "number of samples a step .* was 1, now it is 2"),
        ({"rows": ROWS[:6]}, "number of samples an epoch was 8, now it is 6"),
    ],
)
def test_a_change_of_what_results_depend_on_is_refused_unless_it_is_let_through(tmp_path, changed, message):
    train(tmp_path, max_steps=5)
    with pytest.raises(UsageError, match=message) as caught:
        train(tmp_path, max_steps=8, resume="latest", **changed)
    name = caught.value.hint.rpartition(" ")[2]
    _, summary, lines = train(tmp_path, max_steps=8, resume="latest", allow_changed=[name], **changed)
    assert summary.steps == 8
    assert [line["step"] for line in lines] == list(range(1, 9))


def test_a_changed_rate_takes_effect_and_the_schedule_goes_on(tmp_path):
    train(tmp_path, max_steps=5)
    _, _, lines = train(
        tmp_path, max_steps=8, resume="latest", learning_rate=2e-2, allow_changed=["learning_rate"], save_steps=3
    )
    factors = [min((done + 1) / 10, 1) * 0.97**done for done in range(8)]
    rates = [1e-2] * 5 + [2e-2] * 3
    assert [line["lr"] for line in lines] == pytest.approx([r * f for r, f in zip(rates, factors, strict=True)])


def test_an_unknown_name_of_what_may_change_is_refused_with_the_near_miss(tmp_path):
    train(tmp_path, max_steps=5)
    with pytest.raises(UsageError, match="'lerning_rate'") as caught:
        train(tmp_path, max_steps=8, resume="latest", allow_changed=["lerning_rate"])
    assert "learning_rate" in caught.value.hint


def test_another_optimizer_and_other_weights_are_refused(tmp_path):
    train(tmp_path, max_steps=5, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    with pytest.raises(DsctlError, match=r"optimizer .*SGD, but this run has .*AdamW"):
        train(tmp_path, max_steps=8, resume="latest", optimizer=lambda p: torch.optim.AdamW(p, lr=0.1))
    fewer = Drawing()
    fewer.pipe.dit.bias.requires_grad_(False)
    with pytest.raises(DsctlError, match=r"the state trains pipe\.dit\.bias, this run does not"):
        train(tmp_path, max_steps=8, resume="latest", module=fewer, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))


def test_a_run_can_branch_off_from_an_older_state_into_another_folder(tmp_path):
    train(tmp_path / "a", max_steps=10)
    older = tmp_path / "a" / "state" / "step-5"
    with pytest.raises(DsctlError, match=r"has a later state \(step-10\)") as caught:
        train(tmp_path / "a", max_steps=12, resume=older)
    assert "another --output-path" in caught.value.hint
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    train(tmp_path / "b", max_steps=10, resume=older)
    assert_equal_runs(tmp_path / "a", tmp_path / "b", step=10)
    assert [step for step, _ in state_folders(tmp_path / "b")] == [10]
    assert {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()} == before


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(DsctlError, match="does not exist: there is no run to resume"):
        train(tmp_path / "nowhere", max_steps=5, resume="latest")
    killed(tmp_path / "early", step=2, max_steps=5)
    with pytest.raises(DsctlError, match="has no state to resume from"):
        train(tmp_path / "early", max_steps=5, resume="latest")
    with pytest.raises(DsctlError, match="is no folder of a training state"):
        train(tmp_path / "early", max_steps=5, resume=tmp_path / "early" / "state" / "step-3")
