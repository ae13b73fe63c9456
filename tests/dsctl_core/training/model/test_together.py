"""Average, schedule, validation, samples and trackers in one run: killed and resumed it is the run that was not."""

from __future__ import annotations

import csv
import json

import pytest

from dsctl_core.commands.train import train
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.progress import NoProgress
from dsctl_core.training.callbacks.samples import Samples
from tests.dsctl_core.training.callbacks.test_trackers import events
from tests.dsctl_core.training.runs import FIELDS_OF_TIME, metrics
from tests.dsctl_core.training.test_resume import Killed
from tests.dsctl_core.training.test_run import options

STEPS, SAVED, KILLED = 8, 3, 5  # it is killed two steps after its last save, with what was seen meanwhile
EVERYTHING = {
    "max_steps": STEPS,
    "save_steps": SAVED,
    "learning_rate": 1e-2,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 0.25,
    "ema_decay": 0.9,
    "validation_split": 0.25,
    "validation_every": 2,
    "sample_every": 2,
    "sample_prompt": "a red one",
    "sample_height": 32,
    "sample_width": 32,
    "sample_steps": 2,
    "track": "csv,tensorboard",
}
SEEN = [0, 2, 4, 6, 8]  # the steps at which it is validated and drawn


class Started(NoProgress):
    """Notes what a display of training begins with."""

    def __init__(self):
        self.heard = []

    def start(self, what, total, done=0, unit="step"):
        self.heard += [(what, total, done)] if what == "Training" else []


@pytest.fixture
def runs(tiny_folder, dataset_folder, tmp_path, monkeypatch):
    """The folders of a run that went straight on and of one that was killed and resumed."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(options(tiny_folder, dataset_folder, straight, **EVERYTHING))
    look = Samples.on_step_end

    def killing(self, run, record):
        look(self, run, record)
        if run.step == KILLED:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Samples, "on_step_end", killing)
        train(options(tiny_folder, dataset_folder, resumed, **EVERYTHING))
    assert [line["step"] for line in metrics(resumed) if "loss" in line] == list(range(1, KILLED + 1))
    progress = Started()
    train(options(tiny_folder, dataset_folder, resumed, **EVERYTHING, resume="latest"), progress=progress)
    assert progress.heard == [("Training", STEPS, SAVED)]
    return straight, resumed


def curves(folder):
    """Return the rows of metrics.csv without what depends on the clock."""
    with (folder / "metrics.csv").open(newline="") as stream:
        return [
            {name: cell for name, cell in row.items() if name not in FIELDS_OF_TIME} for row in csv.DictReader(stream)
        ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_with_everything_goes_on_to_the_bit_and_shows_each_step_once(runs):
    straight, resumed = runs
    lines = metrics(straight)
    assert metrics(resumed) == lines
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    assert sorted(line["step"] for line in lines if "validation_loss" in line) == SEEN
    rates = [line["lr"] for line in lines if "lr" in line]
    assert rates[0] < rates[1] < rates[2] > rates[-1]

    for name in (f"step-{STEPS}.safetensors", f"step-{STEPS}.ema.safetensors"):
        (one, _), (other, _) = (read_safetensors(folder / name) for folder in runs)
        assert one.keys() == other.keys()
        assert all(one[key].equal(other[key]) for key in one)

    assert curves(resumed) == curves(straight)
    assert [int(row["step"]) for row in curves(resumed) if row["loss"]] == list(range(1, STEPS + 1))
    drawn = {path.name: path.read_bytes() for path in (straight / "samples").iterdir()}
    assert drawn == {path.name: path.read_bytes() for path in (resumed / "samples").iterdir()}
    assert set(drawn) == {f"step-{step}-1.png" for step in SEEN}

    boards = [events(folder / "tensorboard") for folder in runs]
    for name in ("loss", "lr", "grad_norm", "validation_loss"):
        once, twice = ([(event.step, event.value) for event in board.Scalars(name)] for board in boards)
        assert once == twice
        assert [step for step, _ in twice] == (SEEN if name == "validation_loss" else list(range(1, STEPS + 1)))
    assert [event.step for event in boards[1].Images("sample 1")] == SEEN
    told = json.loads((resumed / "run.json").read_text())
    assert [(each["step"], each["changed"]) for each in told["resumed"]] == [(SAVED, {})]
