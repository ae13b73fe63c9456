"""A lease has one holder, and is free again when that one has ended, however it ended; nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dsctl_core.files import leases
from dsctl_core.files.leases import LEASE, WORKER, Worker
from tests.lease_workers import taken_at_once

REPOSITORY = Path(__file__).parents[3]
# Takes the lease `a1`, says whether it got it, and holds it until its input is closed.
HOLD = """
import sys
from pathlib import Path
from dsctl_core.files.leases import Worker
with Worker(Path(sys.argv[1])) as worker:
    print(worker.take("a1"), flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def elsewhere(path: Path, silent: float) -> None:
    """Write the file of a worker on another machine that was last heard of `silent` seconds ago."""
    path.write_text(json.dumps({"machine": "another", "pid": 1, "since": 1.0}))
    then = path.stat().st_mtime - silent
    os.utime(path, (then, then))


def test_of_many_that_want_a_lease_at_once_one_gets_it(tmp_path: Path) -> None:
    workers = [Worker(tmp_path / "w") for _ in range(8)]
    got = taken_at_once(workers, 40)
    assert sorted(got) == sorted(f"{number:x}" for number in range(40))
    assert [worker.others() for worker in workers] == [7] * 8
    for worker in workers:
        worker.__exit__()
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("killed", [True, False])
def test_a_lease_is_free_when_its_process_has_ended(tmp_path: Path, killed: bool) -> None:
    process = holder(tmp_path / "w")
    try:
        with Worker(tmp_path / "w") as worker:
            assert not worker.take("a1")
            assert worker.others() == 1
            if killed:
                process.kill()
            process.communicate()
            assert (tmp_path / "w" / f"a1{LEASE}").exists() is killed
            assert worker.take("a1")
            assert worker.others() == 0
    finally:
        process.kill()
    assert not (tmp_path / "w").exists()


def test_a_worker_of_another_machine_counts_until_it_has_been_silent_for_long(tmp_path: Path) -> None:
    with Worker(tmp_path / "w") as worker:
        lease, other = tmp_path / "w" / f"a1{LEASE}", tmp_path / "w" / f"b2{WORKER}"
        for silent, dead in ((leases.STALE - 5, False), (leases.STALE + 5, True)):
            elsewhere(lease, silent)
            elsewhere(other, silent)
            assert worker.others() == (0 if dead else 1)
            assert worker.take("a1") is dead
    assert not (tmp_path / "w").exists()


def test_a_worker_is_heard_of_for_as_long_as_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.01)
    with Worker(tmp_path / "w") as worker:
        assert worker.take("a1")
        beats = threading.Event()
        real = os.utime

        def heard(path: Path, *more: object) -> None:
            real(path, *more)  # type: ignore[arg-type]
            if path.name == f"a1{LEASE}":
                beats.set()

        monkeypatch.setattr(os, "utime", heard)
        assert beats.wait(30)


def test_a_number_of_a_process_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    with Worker(tmp_path / "w") as worker:
        lease = tmp_path / "w" / f"a1{LEASE}"
        lease.write_text(json.dumps({"machine": leases._machine(), "pid": os.getpid(), "since": 1.0}))
        assert worker.take("a1")


def test_a_lease_that_is_just_being_written_is_held(tmp_path: Path) -> None:
    with Worker(tmp_path / "w") as worker:
        (tmp_path / "w" / f"a1{LEASE}").touch()
        assert not worker.take("a1")
        (tmp_path / "w" / f"a1{LEASE}").unlink()
