"""Ctrl-C in a real process: it is answered at once, a second one does what was said, and nothing half-made is left."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.dsctl.commands.spoiled import good

# Each program waits in the middle of a command's work, as a long step does, says so with a file, and then goes on.
SLOW = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
{imports}
from dsctl.app import main
real = {name}

def slow(*args, **kwargs):
    made = real(*args, **kwargs)
    if not Path("waiting").exists():
        Path("waiting").touch()
        until = time.monotonic() + {seconds}
        while time.monotonic() < until:
            time.sleep(0.02)
    return made

{name} = slow
sys.exit(main(sys.argv[1:]))
"""
TRAIN = ["train", "--model=tiny", "--dataset-base-path=data", "--lora-rank=2", "--max-steps=50", "--device=cpu"]
LOOP = ("from dsctl_core.training.loop import loop", "loop._Loop._micro_batch")
WORK = {
    "cache": (
        ("from dsctl_core.stages import encode", "encode.encode_each"),
        ["cache", "--model=tiny", "--dataset-base-path=data", "--output-path=out", "--device=cpu"],
    ),
    "infer": (
        ("import dsctl_core.commands.infer as command", "command.load"),
        ["infer", "--model=tiny", "--prompt=a", "--height=32", "--width=32", "--device=cpu", "--output=out/a.png"],
    ),
    "validate": (
        ("import dsctl_core.data.validation as data", "data.validate_dataset"),
        ["dataset", "validate", "data", "--report=out/a.html"],
    ),
    "train, while it encodes": (
        ("from dsctl_core.stages import encode", "encode.encode_each"),
        [*TRAIN, "--output-path=out"],
    ),
}


class Running:
    """A process whose stderr is read line by line as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.lines = process, list[str]()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(iter(self.process.stderr.readline, ""))

    def wait_for(self, what: Callable[[], bool], seconds: float = 90) -> float:
        """Wait until `what` is true, and return the seconds that it took."""
        began = time.monotonic()
        while not what():
            assert time.monotonic() < began + seconds, self.lines
            time.sleep(0.01)
        return time.monotonic() - began

    def said(self, text: str) -> bool:
        return any(text in line for line in list(self.lines))

    def ended(self) -> int:
        """Wait for the end of the process and return its exit code."""
        code = self.process.wait(90)
        self.reader.join(10)
        return code


@contextmanager
def running(
    python: str, slow: tuple[str, str], words: list[str], repository: Path, seconds: float
) -> Iterator[Running]:
    """Run `words` with the function `slow` taking long, until it is in it."""
    good(Path("data"))
    code = SLOW.format(imports=slow[0], name=slow[1], seconds=seconds)
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    command = [python, "-c", code, *words]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            started = Running(process)
            started.wait_for(lambda: Path("waiting").exists() or process.poll() is not None)
            yield started
        finally:
            process.kill()


@pytest.mark.parametrize("what", WORK)
def test_any_long_command_answers_at_once_and_leaves_nothing_half_made(python: str, repository: Path, what: str):
    slow, words = WORK[what]
    with running(python, slow, words, repository, 60) as run:
        run.process.send_signal(signal.SIGINT)
        run.wait_for(lambda: run.said("stopping; press Ctrl-C again to stop at once"), 10)
        assert run.ended() == 130
    assert run.lines[-1] == "interrupted\n"
    assert not run.said("error") and not run.said("Traceback")
    left = [path for path in Path("out").rglob("*") if path.is_file()]
    assert [path for path in left if path.suffix != ".safetensors"] == []


def test_training_says_that_it_stops_after_the_step_and_saves_it(python: str, repository: Path):
    with running(python, LOOP, [*TRAIN, "--no-cache", "--output-path=out"], repository, 2) as run:
        run.process.send_signal(signal.SIGINT)
        run.wait_for(lambda: run.said("stopping after this step; press Ctrl-C again to stop without saving"), 1.5)
        assert run.ended() == 130
    assert run.said("stopped by SIGINT after step 2 of 50, which is saved")
    assert run.lines[-1].startswith("hint: the same command with --resume latest")
    assert not run.said("error")
    assert Path("out/step-2.safetensors").is_file()
    assert Path("out/state/step-2/manifest.json").is_file()


def test_a_second_ctrl_c_stops_training_without_saving(python: str, repository: Path):
    with running(python, LOOP, [*TRAIN, "--no-cache", "--output-path=out"], repository, 60) as run:
        run.process.send_signal(signal.SIGINT)
        run.wait_for(lambda: run.said("stopping after this step"), 10)
        run.process.send_signal(signal.SIGINT)
        assert run.ended() == 130
    assert run.lines[-1] == "interrupted\n"
    assert not run.said("error")
    assert not Path("out/state").exists()
    assert list(Path("out").rglob("*.safetensors")) == []


def test_a_second_ctrl_c_ends_what_does_not_stop_by_itself(python: str, repository: Path):
    """A thread that waits for a hub is not interrupted, and a process waits for its threads."""
    imports = (
        "import dsctl_core.commands.doctor as command; from concurrent.futures import ThreadPoolExecutor; "
        "pool = ThreadPoolExecutor(1); begun = lambda: Path('waiting').touch() or time.sleep(60)"
    )
    code = SLOW.format(imports=imports, name="command.examine", seconds=0)
    code = code.replace("made = real(*args, **kwargs)", "pool.submit(begun); pool.shutdown()")
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    with subprocess.Popen(
        [python, "-c", code, "doctor"], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            run = Running(process)
            run.wait_for(Path("waiting").exists)
            process.send_signal(signal.SIGINT)
            run.wait_for(lambda: run.said("stopping; press Ctrl-C again"), 10)
            process.send_signal(signal.SIGINT)
            run.wait_for(lambda: process.poll() is not None, 20)
            assert process.returncode == 130
        finally:
            process.kill()
