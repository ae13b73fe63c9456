"""A run is copied to an address while it goes on: whole, in order, and enough to go on with on an empty disk."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path

import accelerate
import pytest

from dsctl_core import ModelLogger, launch_training_task
from dsctl_core.commands import train as command
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.options import TrainOptions
from dsctl_core.remote import store
from dsctl_core.remote.errors import RemoteError
from dsctl_core.remote.retry import Patience
from dsctl_core.remote.store import Remote
from dsctl_core.training.output.mirror import Mirror
from dsctl_core.training.output.mirror_record import MIRROR_FILE
from dsctl_core.training.state.folder import find_state_if_any, state_folders
from tests.dsctl_core.training import runs
from tests.dsctl_core.training.loop.test_loop import ROWS
from tests.dsctl_core.training.runs import Drawing, metrics, warm_up
from tests.dsctl_core.training.test_resume import KillAt, Killed, assert_equal_runs
from tests.s3_server import Fault


@pytest.fixture
def address(server, monkeypatch) -> str:
    monkeypatch.setattr(store, "Patience", lambda: Patience(tries=3, first_wait=0.01, timeout=5))
    bucket = f"mirrors-{uuid.uuid4()}"
    server.make_bucket(bucket)
    server.requests.clear()
    return f"{server.scheme}://{bucket}/run"


def train(folder, address, steps=20, hooks=(), resume=None, started="today") -> list[str]:
    """Train as `dsctl train --mirror` does, on a regression; return what was noted."""
    notes: list[str] = []
    mirror = Mirror(folder, Path(address), 2)
    if resume:
        mirror.fetch(notes.append)
    state = find_state_if_any(folder, "auto")
    mirror.refuse_misfit(state)
    logger = ModelLogger(folder, run={"started": started})
    with mirror.copying(notes.append):
        launch_training_task(
            accelerate.Accelerator(cpu=True),
            ROWS,
            Drawing(),
            logger,
            learning_rate=1e-2,
            max_steps=steps,
            save_steps=5,
            lr_scheduler=warm_up,
            hooks=hooks,
            resume=resume,
            on_saved=mirror.request,
        )
    return notes


def there(address: str) -> dict[str, bytes]:
    remote = Remote(address)
    return {entry.name: remote.read(entry) for entry in remote.list()}


def in_folder(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_run_goes_on_from_the_address_on_an_empty_disk_to_the_bit(server, address, tmp_path):
    runs.train(tmp_path / "straight", max_steps=20)
    server.faults += [Fault("safetensors", status=503, times=2), Fault(MIRROR_FILE, lose_answer=True, times=1)]
    with pytest.raises(Killed):
        train(tmp_path / "a", f"{address}/a", hooks=[KillAt(13)])
    until_idle(f"{address}/a", 10)
    shutil.rmtree(tmp_path / "a")
    server.faults += [Fault("GET", cut_after=100, times=3)]
    notes = train(tmp_path / "b", f"{address}/a", resume="latest")
    assert notes == [f"The state of step 10 was fetched from {address}/a"]
    assert_equal_runs(tmp_path / "straight", tmp_path / "b")
    left = there(f"{address}/a")
    assert left.pop(MIRROR_FILE)
    here = in_folder(tmp_path / "b")
    assert here.items() <= left.items()
    assert sorted(left.keys() - here.keys()) == ["step-10.safetensors", "step-5.safetensors"]
    assert {name.split("/")[1] for name in left if name.startswith("state/")} == {"step-15", "step-20"}
    names = [request.split()[1].partition("/a/")[2] for request, _ in server.requests if request.startswith("PUT")]
    assert names[-1] == MIRROR_FILE


def until_idle(address: str, step: int) -> None:
    """Wait until the thread of a run that was killed has uploaded the state of `step`, as before a later kill."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(DsctlError):
            told = json.loads(Remote(address).read(MIRROR_FILE))
            if f"state/step-{step}/manifest.json" in told["files"] and not told["uploading"]:
                return
        time.sleep(0.05)
    pytest.fail("nothing was uploaded")


def test_what_was_being_uploaded_at_a_kill_does_not_count_and_an_earlier_state_is_taken(address, tmp_path, monkeypatch):
    train(tmp_path / "a", address, steps=10)
    runs.train(tmp_path / "straight", max_steps=20)
    before = there(address)
    mirror = Mirror(tmp_path / "a", Path(address), 2)
    real, count = Remote.put, []

    def die(self, name, *given, **how):
        if name.startswith("state/step-15"):
            count.append(name)
            if len(count) == 3:
                raise Killed
        return real(self, name, *given, **how)

    class KilledInUpload(KillAt):
        def on_step_end(self, run, record):
            if record.step == 16:
                mirror.request()
                with pytest.raises(Killed):
                    mirror._upload()
            super().on_step_end(run, record)

    mirror._record = mirror.store.read()
    with monkeypatch.context() as patches:
        patches.setattr(Remote, "put", die)
        with pytest.raises(Killed):
            launch_training_task(
                accelerate.Accelerator(cpu=True),
                ROWS,
                Drawing(),
                ModelLogger(tmp_path / "a", run={"started": "today"}),
                learning_rate=1e-2,
                max_steps=20,
                save_steps=5,
                lr_scheduler=warm_up,
                hooks=[KilledInUpload(16)],
                resume="latest",
            )
    assert before.keys() < there(address).keys()
    notes = train(tmp_path / "b", address, resume="latest")
    assert notes == [f"The state of step 10 was fetched from {address}"]
    assert_equal_runs(tmp_path / "straight", tmp_path / "b")
    assert in_folder(tmp_path / "b").items() <= there(address).items()


def test_an_upload_that_fails_is_an_error_at_the_end_that_loses_nothing_and_is_made_up_for(server, address, tmp_path):
    class FailFrom(KillAt):
        def on_step_end(self, run, record):
            if record.step == self.step:
                server.faults.append(Fault("PUT", status=503))

    with pytest.raises(DsctlError, match=f"{address} has not all of this run: .* status 503") as failed:
        train(tmp_path / "a", address, steps=10, hooks=[FailFrom(3)])
    assert "--resume latest uploads what is missing" in str(failed.value.hint)
    assert [step for step, _ in state_folders(tmp_path / "a")] == [10, 5]
    assert len(metrics(tmp_path / "a")) == 10
    assert there(address).keys() == {MIRROR_FILE}
    server.faults.clear()
    with pytest.raises(DsctlError, match="is done: 10 of 10 steps"):
        train(tmp_path / "a", address, steps=10, resume="latest")
    assert in_folder(tmp_path / "a").items() <= there(address).items()


def test_a_mirror_is_of_one_run_and_overwrites_nothing_of_others(address, tmp_path):
    Remote(f"{address}-other").put("mine.txt", b"mine")
    with pytest.raises(DsctlError, match=r"is not empty, and holds no run: dsctl did not write mine\.txt"):
        train(tmp_path / "o", f"{address}-other", steps=5)
    train(tmp_path / "a", address, steps=10)
    before = there(address)
    with pytest.raises(DsctlError, match=f"{address} already holds a run"):
        train(tmp_path / "new", address, steps=5)
    train(tmp_path / "b", f"{address}-b", steps=5, started="yesterday")
    with pytest.raises(DsctlError, match=f"{address} holds another run than"):
        train(tmp_path / "b", address, steps=20, resume="latest")
    shutil.rmtree(tmp_path / "a" / "state" / "step-10")
    mirror = Mirror(tmp_path / "a", Path(address), 2)
    with pytest.raises(DsctlError, match=r"has a later state \(step-10\), which going on from step-5 would mix with"):
        mirror.refuse_misfit(find_state_if_any(tmp_path / "a", "latest"))
    assert there(address) == before
    Remote(address).put("step-15.safetensors", b"mine")
    with pytest.raises(DsctlError, match=r"step-15\.safetensors is there already, and this run did not write it"):
        train(tmp_path / "a", address, steps=15, resume="latest")
    assert there(address)["step-15.safetensors"] == b"mine"


def test_two_runs_that_write_to_one_mirror_are_found_out(address, tmp_path):
    class Another(KillAt):
        def on_step_end(self, run, record):
            if record.step == 1:
                Remote(address).put(MIRROR_FILE, b"{}")

    with pytest.raises(DsctlError, match="was written by another run"):
        train(tmp_path / "a", address, steps=5, hooks=[Another(1)])
    assert there(address) == {MIRROR_FILE: b"{}"}


def test_a_run_that_fails_before_its_first_step_leaves_nothing_at_the_address(address, tmp_path):
    with pytest.raises(DsctlError, match="the dataset is empty"), Mirror(tmp_path, Path(address), 2).copying(print):
        raise DsctlError("the dataset is empty")
    assert there(address) == {}


OPTIONS = {"model": "tiny", "lora_rank": 2, "device": "cpu", "height": 32, "width": 32, "resume": "auto"}


def test_the_command_goes_on_on_another_machine_by_the_same_words(server, address, repository, tmp_path):
    data = repository / "dsctl_core" / "assets" / "datasets" / "robot"
    words = {**OPTIONS, "dataset_base_path": data, "cache": False, "save_steps": 1, "mirror": address}
    result = command.train(TrainOptions(output_path=tmp_path / "a", max_steps=2, **words))
    assert result.mirror == address
    command.train(TrainOptions(output_path=tmp_path / "b", max_steps=3, **words))
    assert [line["step"] for line in metrics(tmp_path / "b")] == [1, 2, 3]
    assert in_folder(tmp_path / "b").items() <= there(address).items()


def test_a_mirror_on_this_machine_or_where_nothing_can_be_written_is_refused(tmp_path):
    words = {"dataset_base_path": tmp_path, "output_path": tmp_path / "o", "max_steps": 1, **OPTIONS}
    with pytest.raises(UsageError, match="--mirror is 'runs', which is no address"):
        TrainOptions(mirror="runs", **words)
    with pytest.raises(RemoteError, match="https://host/run cannot be written to"):
        command.train(TrainOptions(mirror="https://host/run", **words))
    with pytest.raises(UsageError, match="--mirror has no effect on sft:data_process"):
        TrainOptions(task="sft:data_process", mirror="s3://b/c", **{**words, "resume": None, "max_steps": None})
