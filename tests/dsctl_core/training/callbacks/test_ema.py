"""The average of the weights: the formula, to the bit in what is saved and shown, and nothing of it in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch

from dsctl_core import ModelLogger, launch_training_task
from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.options import OptimizerOptions, TrainOptions
from dsctl_core.training.callbacks.base import TrainingHook, TrainingRun
from dsctl_core.training.callbacks.ema import AverageWeights, decay_after
from tests.dsctl_core.training.loop.test_loop import ROWS, Module

DECAY, STEPS = 0.9, 12


class Notes(TrainingHook):
    """Notes the weights in training, and those that are shown, after each step."""

    def __init__(self) -> None:
        self.trained: list[torch.Tensor] = []
        self.shown: list[torch.Tensor] = []

    def on_training_start(self, run: TrainingRun) -> None:
        self.note(run)

    def on_step_end(self, run: TrainingRun, record: Any) -> None:
        self.note(run)

    def note(self, run: TrainingRun) -> None:
        weight = run.parameters[0]
        before = weight.detach().clone()
        with run.shown_weights():
            self.shown.append(weight.detach().clone())
        assert torch.equal(weight, before)
        self.trained.append(before)


def run(folder: Path, hooks: list[TrainingHook], **settings: Any) -> Module:
    module = settings.pop("module", None) or Module()
    launch_training_task(
        accelerate.Accelerator(cpu=True),
        ROWS,
        module,
        ModelLogger(folder),
        **{"learning_rate": 1e-2, "max_steps": STEPS, "hooks": hooks, **settings},
    )
    return module


def test_the_average_is_that_of_the_formula(tmp_path: Path):
    notes = Notes()
    average = AverageWeights(DECAY)
    run(tmp_path, [average, notes])
    expected = notes.trained[0].double()
    assert torch.equal(notes.shown[0], notes.trained[0])
    for step in range(1, STEPS + 1):
        decay = min(DECAY, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * notes.trained[step].double()
        torch.testing.assert_close(notes.shown[step].double(), expected, atol=1e-6, rtol=0)
    assert not torch.equal(notes.shown[-1], notes.trained[-1])


def test_early_on_the_average_follows_faster():
    assert [decay_after(step, 0.999) for step in (1, 10)] == [2 / 11, 11 / 20]
    assert decay_after(10**6, 0.999) == 0.999


def test_training_goes_on_as_without_an_average(tmp_path: Path):
    plain = run(tmp_path / "plain", [])
    averaged = run(tmp_path / "averaged", [AverageWeights(DECAY), Notes()], save_steps=3)
    assert torch.equal(plain.pipe.dit.weight, averaged.pipe.dit.weight)


def test_both_are_saved_side_by_side(tmp_path: Path):
    notes = Notes()
    module = run(tmp_path, [AverageWeights(DECAY), notes], save_steps=5)
    names = {f"step-{step}{kind}.safetensors" for step in (5, 10, 12) for kind in ("", ".ema")}
    assert {path.name for path in tmp_path.glob("*.safetensors")} == names
    for step in (5, 10, 12):
        for kind, seen in (("", notes.trained), (".ema", notes.shown)):
            weights, about = read_safetensors(tmp_path / f"step-{step}{kind}.safetensors")
            assert torch.equal(weights["weight"], seen[step])
            assert about.get("variant") == (kind.removeprefix(".") or None)
    assert torch.equal(module.pipe.dit.weight, notes.trained[-1])


def test_an_average_goes_on_from_its_state(tmp_path: Path):
    whole, again = AverageWeights(DECAY), AverageWeights(DECAY)
    run(tmp_path / "a", [whole])
    first = AverageWeights(DECAY)
    half = Notes()
    run(tmp_path / "b", [first, half], max_steps=6)
    state = first.state()
    assert state["updates"] == 6

    class Resuming(TrainingHook):
        def on_training_start(self, run: TrainingRun) -> None:
            again.load_state(state)

        def on_step_end(self, run: TrainingRun, record: Any) -> None:
            assert again.updates == 6 + run.step

    run(tmp_path / "c", [again, Resuming()], max_steps=1)
    assert again.updates == 7
    with pytest.raises(DsctlError, match="is only in one of"):
        again.load_state({"updates": 1, "averages": {}})


def test_weights_in_which_an_average_would_stand_still_are_refused(tmp_path: Path):
    module = Module()
    module.pipe.dit.bfloat16()
    with pytest.raises(UsageError, match="pipe.dit.weight is trained in torch.bfloat16"):
        run(tmp_path, [AverageWeights(DECAY)], module=module)


def test_train_saves_the_average_of_a_lora(tiny_folder: Path, dataset_folder: Path, tmp_path: Path):
    settings = {"model": str(tiny_folder), "dataset_base_path": dataset_folder, "lora_rank": 2, "max_steps": 3}
    out = tmp_path / "out"
    result = train(TrainOptions(**settings, output_path=out, device="cpu", ema_decay=0.99))
    assert result.checkpoint == out / "step-3.safetensors"
    own, average = (read_safetensors(out / f"step-3{kind}.safetensors")[0] for kind in ("", ".ema"))
    assert own.keys() == average.keys()
    assert any(not torch.equal(own[name], average[name]) for name in own)


@pytest.mark.parametrize("decay", [0, 1, 1.5])
def test_a_decay_that_averages_nothing_is_refused(decay: float):
    with pytest.raises(UsageError, match="--ema-decay is"):
        OptimizerOptions(ema_decay=decay)
