"""A lock keeps other processes out for as long as its process lives, and leaves nothing that keeps them out longer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dsctl_core.errors import DsctlError
from dsctl_core.files.lock import locked

REPOSITORY = Path(__file__).parents[3]
# Holds the lock and has a child, as one with worker processes has; says which, and ends when its input is closed.
HOLD = """
import os, sys, time
from pathlib import Path
from dsctl_core.files.lock import locked
with locked(Path(sys.argv[1])):
    forked, ready = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.write(ready, b"!")
        time.sleep(60)
        os._exit(0)
    os.read(forked, 1)  # until the child has left fork(), in which it closes the file of the lock
    print(child, flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(file: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Give a process that holds the lock, and the number of its child, which lives on when the process ends."""
    command = [sys.executable, "-W", "ignore", "-c", HOLD, str(file)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        assert process.stdout is not None and process.stdin is not None
        child = int(process.stdout.readline())
        try:
            yield process, child
        finally:
            os.kill(child, signal.SIGKILL)


def busy() -> DsctlError:
    return DsctlError("somebody is at it", hint="wait")


def test_another_process_is_refused_in_the_words_of_the_caller_until_the_first_is_done(tmp_path: Path):
    with held(tmp_path / "lock") as (first, child):
        with pytest.raises(DsctlError, match="^somebody is at it$") as caught, locked(tmp_path / "lock", busy()):
            pass
        assert caught.value.hint == "wait"
        first.communicate(timeout=60)
        assert first.returncode == 0
        with locked(tmp_path / "lock", busy()):
            assert (tmp_path / "lock").read_bytes() == b""
        os.kill(child, 0)  # it is alive
    assert list(tmp_path.iterdir()) == []


def test_a_lock_ends_with_a_killed_process_though_its_child_lives_on_and_its_file_locks_nothing(tmp_path: Path):
    with held(tmp_path / "lock") as (first, child):
        first.kill()
        first.wait(60)
        assert (tmp_path / "lock").exists()
        with locked(tmp_path / "lock", busy()):
            pass
        os.kill(child, 0)  # it is alive
    assert list(tmp_path.iterdir()) == []


def test_without_an_error_to_raise_it_waits_for_the_other(tmp_path: Path):
    with held(tmp_path / "lock") as (first, _):
        assert first.stdin is not None
        began = time.monotonic()
        end = threading.Timer(0.5, first.stdin.close)
        end.start()
        with locked(tmp_path / "lock"):
            assert time.monotonic() - began >= 0.5
        end.join()


def test_what_fails_while_the_lock_is_held_or_given_back_frees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(KeyError), locked(tmp_path / "lock", busy()):
        raise KeyError
    with monkeypatch.context() as patches:
        patches.setattr(Path, "unlink", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt), locked(tmp_path / "lock", busy()):
            pass
    with locked(tmp_path / "lock", busy()):
        pass


def test_a_file_that_was_there_before_locks_nothing(tmp_path: Path):
    (tmp_path / "lock").write_text("of an earlier version")
    with locked(tmp_path / "lock", busy()):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DsctlError, match="lock could not be written") as caught,
        locked(tmp_path / "file" / "lock", busy()),
    ):
        pass
    assert caught.value.hint
