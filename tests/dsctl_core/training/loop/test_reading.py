"""Reading ahead of a GPU: who reads, how far ahead, and that nothing but the time changes."""

from __future__ import annotations

import copy
import multiprocessing
import threading
from types import SimpleNamespace

import pytest
import torch

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.data import UnifiedDataset
from dsctl_core.data.sampler import BatchPlan
from dsctl_core.errors import DsctlError
from dsctl_core.training.loop import loop, reading
from dsctl_core.training.loop.batches import Loaded, MicroBatches, batch_loader
from dsctl_core.training.loop.reading import Reading, plan_reading
from tests.dsctl_core.training.loop.test_loop import ROWS, Broken, run

CPU = torch.device("cpu")
THREAD = Reading(in_thread=True)


def files():
    return object.__new__(UnifiedDataset)


def accelerator(device="cuda", processes=1):
    return SimpleNamespace(device=torch.device(device), num_processes=processes)


@pytest.fixture(autouse=True)
def _machine(monkeypatch):
    """A machine with 8 cores and 2 GPUs, whose processes begin as copies, and pinned memory that is plain."""
    monkeypatch.setattr(reading, "_cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["fork", "spawn"])
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())


@pytest.mark.parametrize(
    ("workers", "dataset", "device", "batch", "expected"),
    [
        (None, files(), "cpu", 1, Reading()),
        (3, files(), "cpu", 1, Reading(workers=3)),
        (0, files(), "cuda", 1, Reading()),
        (3, files(), "cuda", 8, Reading(workers=3, pinned=True)),
        (None, object.__new__(CachedDataset), "cuda", 8, Reading(in_thread=True, pinned=True)),
        (None, ROWS, "cuda", 1, Reading(in_thread=True, pinned=True)),
        (None, files(), "cuda", 1, Reading(workers=4, pinned=True)),
        (None, files(), "cuda", 4, Reading(workers=4, ahead=1, pinned=True)),
        (None, files(), "cuda", 6, Reading(workers=2, ahead=1, pinned=True)),
        (None, files(), "cuda", 64, Reading(workers=1, ahead=1, pinned=True)),
    ],
)
def test_who_reads_depends_on_the_device_on_the_samples_and_on_how_many_would_wait(
    workers, dataset, device, batch, expected
):
    assert plan_reading(workers, dataset, accelerator(device), batch) == expected


@pytest.mark.parametrize(("cores", "processes", "expected"), [(8, 2, 3), (8, 16, 3), (2, 1, 1), (1, 1, 1), (64, 2, 4)])
def test_processes_of_one_machine_share_its_cores(monkeypatch, cores, processes, expected):
    monkeypatch.setattr(reading, "_cores", lambda: cores)
    assert plan_reading(None, files(), accelerator(processes=processes), 1).workers == expected


def test_where_a_process_would_have_to_import_everything_anew_a_thread_reads(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert plan_reading(None, files(), accelerator(), 1).in_thread


def test_a_thread_that_reads_changes_nothing(tmp_path, monkeypatch):
    alone = run(tmp_path / "alone", max_steps=11, accumulate=2, save_steps=3)
    monkeypatch.setattr(loop, "plan_reading", lambda *_: THREAD)
    ahead = run(tmp_path / "ahead", max_steps=11, accumulate=2, save_steps=3)
    assert alone[0].seen == ahead[0].seen
    assert torch.equal(alone[0].pipe.dit.weight, ahead[0].pipe.dit.weight)
    branch = run(tmp_path / "branch", max_steps=11, accumulate=2, resume=tmp_path / "ahead" / "state" / "step-9")
    assert branch[0].seen == alone[0].seen[18:]
    assert torch.equal(branch[0].pipe.dit.weight, alone[0].pipe.dit.weight)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("samples")]


class Watched(list):
    """Rows that note which were read, in which thread."""

    def __init__(self, rows):
        super().__init__(rows)
        self.read, self.threads = [], set()

    def __getitem__(self, index):
        self.read.append(index)
        self.threads.add(threading.current_thread().name)
        return super().__getitem__(index)


def test_the_thread_is_ahead_by_a_bounded_number_of_batches():
    rows = Watched([{"x": torch.full((1,), number)} for number in range(30)])
    rounds = MicroBatches(BatchPlan(30, 2, seed=1))
    taken = []
    for number, batch in enumerate(batch_loader(rows, rounds, 5, THREAD, CPU, replace_bad=False), 1):
        taken += [int(loaded.sample["x"]) for loaded in batch]
        assert len(rows.read) <= 2 * (number + THREAD.ahead)
    assert taken == rows.read, "in the order in which they are read"
    assert threading.current_thread().name not in rows.threads


def test_an_error_in_the_thread_arrives_whole_and_ends_it(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "plan_reading", lambda *_: THREAD)
    with pytest.raises(DsctlError, match="3.png is cut off"):
        run(tmp_path, rows=Broken(ROWS))

    class Failing(list):
        def __getitem__(self, index):
            raise ZeroDivisionError("none of ours")

    with pytest.raises(ZeroDivisionError, match="none of ours"):
        run(tmp_path / "other", rows=Failing(ROWS))


def test_every_tensor_of_a_sample_is_pinned_wherever_it_is(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    tensors = [torch.zeros(1) for _ in range(3)]
    sample = {"_cached": {"shared.a": tensors[0], "posi.b": [tensors[1], (tensors[2], "text")]}, "prompt": "text"}
    made = Loaded(copy.copy(sample), seed=3).pin_memory()
    assert [id(each) for each in pinned] == [id(each) for each in tensors]
    assert (made.seed, made.sample["prompt"]) == (3, "text")
    assert made.sample["_cached"]["posi.b"][1][1] == "text"
