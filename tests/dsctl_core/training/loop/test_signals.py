"""A run that is asked to stop finishes its step, saves, and says so; asked twice, it stops at once."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from dsctl_core.progress import NoProgress
from dsctl_core.training.callbacks.base import TrainingHook
from dsctl_core.training.loop.signals import TrainingStopped
from dsctl_core.training.state.folder import state_folders
from dsctl_core.training.state.snapshot import Snapshots
from tests.dsctl_core.training.runs import metrics, start, train
from tests.dsctl_core.training.test_resume import assert_equal_runs

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


class Sent(TrainingHook):
    """Sends signals to its own process after a step."""

    def __init__(self, step, *numbers):
        self.step, self.numbers = step, numbers

    def on_step_end(self, run, record):
        if record.step == self.step:
            for number in self.numbers:
                os.kill(os.getpid(), number)


class Notes(NoProgress):
    """Keeps what is noted."""

    def __init__(self):
        self.texts = []

    def note(self, message):
        self.texts.append(message)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGINT, "stopping after this step; press Ctrl-C again to stop without saving"),
        (signal.SIGTERM, "stopping after this step"),
    ],
)
def test_a_signal_is_answered_when_it_comes_and_not_when_the_step_ends(tmp_path, number, said):
    notes = Notes()

    class Answered(Sent):
        def on_step_end(self, run, record):
            super().on_step_end(run, record)
            assert record.step != self.step or notes.texts[-1] == said

    with pytest.raises(TrainingStopped):
        train(tmp_path, max_steps=12, hooks=[Answered(3, number)], progress=notes)
    assert notes.texts.count(said) == 1


@BOTH
@pytest.mark.parametrize("workers", [0, 1])
def test_the_step_is_finished_and_saved_and_the_rest_can_be_done_later(tmp_path, number, workers):
    settings = {"max_steps": 12, "save_steps": 12, "num_workers": workers}
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(TrainingStopped) as caught:
        train(tmp_path / "stopped", hooks=[Sent(6, number)], **settings)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    assert caught.value.exit_code == (75 if number == signal.SIGTERM else 130)
    assert caught.value.problem == f"stopped by {signal.Signals(number).name} after step 7 of 12, which is saved"
    assert "--resume latest" in caught.value.hint
    assert (tmp_path / "stopped" / "step-7.safetensors").is_file()
    train(tmp_path / "stopped", resume="latest", **settings)
    train(tmp_path / "straight", **settings)
    assert_equal_runs(tmp_path / "straight", tmp_path / "stopped", step=12)


def test_where_no_state_can_be_kept_it_is_said_at_the_start_and_not_called_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(Snapshots, "possible", False)  # as with DeepSpeed
    notes = Notes()
    with pytest.raises(TrainingStopped) as caught:
        train(tmp_path, max_steps=12, save_steps=12, hooks=[Sent(6, signal.SIGTERM)], progress=notes)
    assert any("no state: this run cannot be resumed" in text for text in notes.texts)
    assert "after step 7 of 12, whose weights are saved, but no state" in caught.value.problem
    assert "--resume" not in caught.value.hint
    assert caught.value.exit_code == 143  # again would not go on
    assert "--lora-checkpoint" in caught.value.hint
    assert (tmp_path / "step-7.safetensors").is_file()
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_second_signal_ends_the_run_at_once(tmp_path, number, error):
    with pytest.raises(error):
        train(tmp_path, max_steps=12, hooks=[Sent(2, number, number)])
    assert len(metrics(tmp_path)) == 2
    assert state_folders(tmp_path) == []


def test_the_same_signal_passed_on_by_a_launcher_is_no_second_one(tmp_path, monkeypatch):
    class SentInProcesses(Sent):
        def on_step_end(self, run, record):
            with monkeypatch.context() as patches:
                patches.setenv("RANK", "0")
                super().on_step_end(run, record)

    with pytest.raises(TrainingStopped):
        train(tmp_path, max_steps=12, hooks=[SentInProcesses(2, signal.SIGINT, signal.SIGINT, signal.SIGTERM)])
    assert [step for step, _ in state_folders(tmp_path)] == [3]


def test_a_run_whose_time_is_up_ends_with_a_saved_step_and_the_code_of_a_requeue(tmp_path):
    settings = {"max_steps": 12, "save_steps": 12}
    now = time.monotonic()
    train(tmp_path / "straight", deadline=now + 3600, **settings)
    with pytest.raises(TrainingStopped) as caught:
        train(tmp_path / "stopped", deadline=now, **settings)
    assert caught.value.problem == "stopped by --max-hours after step 1 of 12, which is saved"
    assert caught.value.exit_code == 75
    train(tmp_path / "stopped", resume="latest", **settings)
    assert_equal_runs(tmp_path / "straight", tmp_path / "stopped", step=12)


def test_a_signal_in_the_last_step_changes_nothing(tmp_path):
    _, summary, _ = train(tmp_path, max_steps=3, hooks=[Sent(3, signal.SIGTERM)])
    assert summary.steps == 3


def test_two_processes_stop_after_the_same_step(python, tmp_path):
    process = start(python, tmp_path / "stopped", 2000, "", 0.05, 2000, processes=2)
    _wait_for(tmp_path / "stopped" / "metrics.jsonl")
    process.terminate()
    out, errors = process.communicate(timeout=120)
    assert out.count("stopped by SIGTERM after step") == 2, errors
    ((step, _),) = state_folders(tmp_path / "stopped")
    assert out.count(f"after step {step} of 2000") == 2
    assert len(metrics(tmp_path / "stopped")) == step


def test_the_command_line_says_how_to_go_on(python, tiny_folder, dataset_folder, repository, tmp_path):
    flags = ["--model", str(tiny_folder), "--dataset-base-path", str(dataset_folder), "--lora-rank", "2"]
    flags += ["--max-steps", "5000", "--device", "cpu", "--output-path", str(tmp_path / "out")]
    process = subprocess.Popen(
        [python, "-m", "dsctl", "train", *flags],
        env={**os.environ, "PYTHONPATH": str(repository)},
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_for(tmp_path / "out" / "metrics.jsonl")
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "stopping after this step\n" in errors
    assert "\nstopped by SIGTERM after step" in errors
    assert "error" not in errors
    assert "--resume latest" in errors


def _wait_for(path):
    until = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.05)
