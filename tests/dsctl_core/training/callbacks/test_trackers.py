"""Trackers: what they are told can be read back, a resumed run goes on where it was, and none can end a run."""

import csv
import importlib.util
import json
import logging
import sys
from types import SimpleNamespace

import pytest
from accelerate import tracking

from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError
from dsctl_core.options.callbacks import TRACKERS
from dsctl_core.training.callbacks.trackers import CsvTracker, Trackers, Tracking, flat
from dsctl_core.training.output.logger import StepRecord
from tests.dsctl_core.training.callbacks.test_samples import SAMPLES
from tests.dsctl_core.training.test_run import options


class Recorder(tracking.GeneralTracker):
    """A tracker that keeps what it is told."""

    requires_logging_directory = False
    made = []

    def __init__(self, *args, **kwargs):
        super().__init__()
        self.given, self.told, self.pictures = (args, kwargs), [], []
        Recorder.made.append(self)

    def start(self):
        self.told.append("start")

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.told.append(values)

    def log(self, values, step=None):
        self.told.append((step, values))

    def log_images(self, values, step=None):
        self.pictures.append((step, values))

    def finish(self):
        self.told.append("finish")


@pytest.fixture
def recorder(monkeypatch):
    """Stand in for wandb."""

    class Wandb(Recorder):
        name = "wandb"

    Recorder.made.clear()
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Wandb)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: object())
    return Wandb


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"images": 0})
    found.Reload()
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_every_step_the_validation_the_samples_and_the_options(tiny_folder, dataset_folder, tmp_path):
    out = tmp_path / "out"
    train(options(tiny_folder, dataset_folder, out, max_steps=3, track="tensorboard", validation_split=0.3, **SAMPLES))
    found = events(out / "tensorboard")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "lr", "grad_norm", "samples_per_second", "validation_loss"):
        expected = sorted((line["step"], pytest.approx(line[name])) for line in lines if name in line)
        assert [(event.step, event.value) for event in found.Scalars(name)] == expected
    assert [event.step for event in found.Images("sample 2")] == [0, 2, 3]
    assert found.Images("sample 2")[0].width == 48
    (text,) = found.Tensors("options/text_summary")
    assert b'"lora_rank": 2' in text.tensor_proto.string_val[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_resumed_run_goes_on_in_the_curves_of_tensorboard_and_csv(tmp_path):
    def record(step, loss):
        return StepRecord(step, loss, 1e-3, 1.0, 0.5, 2.0, 1000)

    accelerator = SimpleNamespace(is_main_process=True, trackers=[])
    for start, losses in ((0, [0.1, 0.2, 0.3, 0.4]), (2, [7.0, 8.0])):
        trackers = Trackers(["tensorboard", "csv"], "dsctl", {})
        run = SimpleNamespace(accelerator=accelerator, logger=SimpleNamespace(output_path=tmp_path), step=start)
        trackers.on_training_start(run)
        for number, loss in enumerate(losses, start + 1):
            trackers.on_step_end(run, record(number, loss))
        for tracker in trackers.running:
            tracker.finish()
    curve = [(event.step, round(event.value, 3)) for event in events(tmp_path / "tensorboard").Scalars("loss")]
    assert curve == [(1, 0.1), (2, 0.2), (3, 7.0), (4, 8.0)]
    with (tmp_path / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(int(row["step"]), float(row["loss"])) for row in rows] == curve


def test_the_csv_has_the_measurements_of_metrics_jsonl(tiny_folder, dataset_folder, tmp_path):
    train(options(tiny_folder, dataset_folder, tmp_path / "out", track="csv", validation_split=0.3))
    with (tmp_path / "out" / "metrics.csv").open(newline="") as stream:
        rows = [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(stream)]
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    key = sorted(lines, key=lambda line: (line["step"], "validation_loss" in line))
    assert sorted(rows, key=lambda row: (row["step"], "validation_loss" in row)) == key


@pytest.mark.parametrize("name", [name for name, package in TRACKERS.items() if package is not None])
def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_read(tmp_path, monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    with pytest.raises(DsctlError, match=f"--track {name} needs the package") as caught:
        train(options("nowhere", tmp_path / "nowhere", tmp_path / "out", track=name))
    assert "pip install" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_tracker_is_told_options_steps_and_pictures_but_no_token(
    tiny_folder, dataset_folder, tmp_path, recorder, monkeypatch
):
    monkeypatch.setenv("WANDB_API_KEY", "a-secret")
    monkeypatch.setenv("HF_TOKEN", "a-secret")
    out = tmp_path / "my run"
    train(options(tiny_folder, dataset_folder, out, track="wandb", track_project="mine", **SAMPLES))
    (made,) = Recorder.made
    args, kwargs = made.given
    assert args == ("mine",)
    assert kwargs.items() >= {"name": "my run", "resume": "allow", "dir": str(out)}.items()
    assert kwargs["id"] == json.loads((out / "trackers.json").read_text())["id"]
    assert made.told[0] == "start"
    assert made.told[1]["lora_rank"] == 2
    assert [entry[0] for entry in made.told[2:-1]] == [1, 2]
    assert made.told[-1] == "finish"
    assert [(step, sorted(values)) for step, values in made.pictures] == [(n, ["sample 1", "sample 2"]) for n in (0, 2)]
    assert "a-secret" not in str(made.told)
    assert not any(b"a-secret" in path.read_bytes() for path in out.rglob("*") if path.is_file())


def test_a_resumed_run_is_the_same_run_to_a_tracker(tmp_path, recorder):
    for step in (0, 5):
        run = SimpleNamespace(
            accelerator=SimpleNamespace(is_main_process=True, trackers=[]),
            logger=SimpleNamespace(output_path=tmp_path),
            step=step,
        )
        Trackers(["wandb"], "dsctl", {}).on_training_start(run)
    first, second = (made.given[1]["id"] for made in Recorder.made)
    assert first == second


def test_a_tracker_that_cannot_start_ends_the_run_before_it_begins(
    tiny_folder, dataset_folder, tmp_path, recorder, monkeypatch
):
    def refuse(self):
        raise RuntimeError("no API key")

    monkeypatch.setattr(recorder, "start", refuse)
    with pytest.raises(DsctlError, match="--track wandb could not start: no API key") as caught:
        train(options(tiny_folder, dataset_folder, tmp_path / "out", track="wandb"))
    assert "wandb login" in caught.value.hint
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_tracker_that_asks_for_a_login_finds_nobody_at_the_keyboard(monkeypatch, tmp_path, recorder):
    keyboard = sys.stdin
    answers = []

    def ask(self):
        answers.append((sys.stdin.isatty(), sys.stdin.read()))

    monkeypatch.setattr(recorder, "start", ask)
    run = SimpleNamespace(
        accelerator=SimpleNamespace(is_main_process=True, trackers=[]),
        logger=SimpleNamespace(output_path=tmp_path),
        step=0,
    )
    Trackers(["wandb"], "dsctl", {}).on_training_start(run)
    assert answers == [(False, "")]
    assert sys.stdin is keyboard


def test_a_tracker_that_fails_on_the_way_is_left_out_and_the_run_goes_on(
    tiny_folder, dataset_folder, tmp_path, recorder, monkeypatch, caplog
):
    def fail(self, values, step=None):
        raise ConnectionError("the server is away")

    monkeypatch.setattr(recorder, "log", fail)
    with caplog.at_level(logging.WARNING):
        result = train(options(tiny_folder, dataset_folder, tmp_path / "out", track="wandb,csv"))
    assert result.steps == 2
    assert [record.getMessage() for record in caplog.records if "wandb" in record.getMessage()] == [
        "--track wandb failed, and is left out from now on: the server is away"
    ]
    assert len((tmp_path / "out" / "metrics.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("name", [name for name, package in TRACKERS.items() if package is not None])
def test_accelerate_takes_what_its_trackers_are_made_with(tmp_path, name):
    tracker = Tracking(tmp_path, "dsctl", "0123456789abcdef", 3).build(name)
    assert tracker.name == name


def test_nested_options_become_text_and_those_left_open_are_left_out():
    assert flat({"a": None, "b": ["x"], "c": 1.5, "d": True}) == {"b": '["x"]', "c": 1.5, "d": True}


def test_a_csv_that_cannot_be_written_is_an_error_with_its_path(tmp_path):
    tracker = CsvTracker(tmp_path, 0)
    tracker.start()
    tracker.path.unlink()
    tracker.path.mkdir()
    with pytest.raises(DsctlError, match="metrics.csv could not be written"):
        tracker.log({"loss": 1.0}, step=1)
