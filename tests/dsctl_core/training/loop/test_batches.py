"""Batches: however samples are spread over batches, micro-batches and processes, a step is the mean over them."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch

from dsctl_core.data.sampler import BatchPlan
from dsctl_core.errors import DsctlError
from dsctl_core.training.loop.batches import MicroBatches, batch_loader
from dsctl_core.training.loop.reading import Reading
from tests.dsctl_core.training.loop.test_loop import ROWS, run

BUCKETS = list("aababbab")  # what the 8 rows are, unevenly spread over batches


def rounds_of(processes: int, **settings: int) -> list[MicroBatches]:
    plan = BatchPlan(30, 4, seed=3, buckets=["a"] * 7 + ["b"] * 3)
    return [MicroBatches(plan, process, processes, **settings) for process in range(processes)]


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_the_processes_share_an_epoch_without_overlap_or_loss(processes):
    every = rounds_of(processes)
    counted = [
        position
        for rounds in every
        for number, batch in enumerate(rounds)
        for _, position in batch
        if rounds.weight(number)
    ]
    assert sorted(counted) == list(range(30))
    assert len({len(list(rounds)) for rounds in every}) == 1, "every process has as many rounds, or they would wait"


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_order_is_the_same_for_any_number_of_processes(processes):
    every = [list(rounds) for rounds in rounds_of(processes)]
    in_turn = [each[number] for number in range(len(every[0])) for each in every]
    assert in_turn[: len(rounds_of(1)[0])] == list(rounds_of(1)[0])


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_every_sample_of_a_step_counts_the_same(processes, accumulate):
    every = rounds_of(processes, accumulate=accumulate)
    shares: Counter[tuple[int, float]] = Counter()
    step = 0
    for number in range(len(every[0])):
        for rounds in every:
            batch = list(rounds)[number]
            share = rounds.weight(number) / accumulate / processes / len(batch)
            if share:
                shares[step, round(share * rounds.step_samples(number), 9)] += len(batch)
        step += every[0].ends_step(number)
    assert all(share == 1 for _, share in shares)
    assert sum(shares.values()) == 30


def test_a_step_of_unequal_batches_is_the_mean_over_its_samples(tmp_path):
    settings = {"max_steps": 1, "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)}
    whole, _, expected = run(tmp_path / "whole", batch_size=8, **settings)
    parts, _, lines = run(tmp_path / "parts", batch_size=3, buckets=BUCKETS, accumulate=4, **settings)
    assert sorted(map(len, parts.seen)) == [1, 1, 3, 3]
    assert lines[0]["loss"] == pytest.approx(expected[0]["loss"], abs=1e-5)
    torch.testing.assert_close(parts.pipe.dit.weight, whole.pipe.dit.weight, atol=1e-5, rtol=0)


def test_a_batch_holds_one_bucket_and_an_epoch_drops_nothing(tmp_path):
    module, summary, _ = run(tmp_path, batch_size=3, buckets=BUCKETS, num_epochs=2)
    assert summary.steps == 8
    assert sorted(sum(module.seen[:4], [])) == sorted(sum(module.seen[4:], [])) == list(range(8))
    assert all(len({BUCKETS[row] for row in rows}) == 1 for rows in module.seen)


def test_an_epoch_that_does_not_fill_its_last_step_still_ends_with_one(tmp_path):
    _, summary, _ = run(tmp_path, accumulate=3, num_epochs=2)
    assert summary.steps == 6


class Rotten(list):
    """Rows of which some cannot be loaded."""

    def __init__(self, rows, bad):
        super().__init__(rows)
        self.bad = bad

    def __getitem__(self, index):
        if index in self.bad:
            raise DsctlError(f"{index}.png is cut off", hint="copy it again")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_is_replaced_by_one_of_its_bucket_and_told(tmp_path, workers):
    told = []
    module, summary, _ = run(
        tmp_path,
        rows=Rotten(ROWS, bad={3, 4}),
        batch_size=2,
        buckets=BUCKETS,
        num_workers=workers,
        on_bad_sample=lambda error: told.append(error.problem),
    )
    seen = sum(module.seen, [])
    assert sorted(told) == ["3.png is cut off", "4.png is cut off", "4.png is cut off"][: len(told)]
    assert set(told) == {"3.png is cut off", "4.png is cut off"}
    assert (len(seen), set(seen)) == (8, {0, 1, 2, 5, 6, 7})
    assert all(len({BUCKETS[row] for row in rows}) == 1 for rows in module.seen)
    assert summary.steps == 4


def test_a_bucket_in_which_nothing_can_be_loaded_stops_the_run(tmp_path):
    with pytest.raises(DsctlError, match=r"\d.png is cut off"):
        run(tmp_path, rows=Rotten(ROWS, bad=set(range(8))), on_bad_sample=lambda error: None)


def test_a_sample_s_seed_does_not_depend_on_who_loads_it():
    plan = BatchPlan(8, 2, seed=1)
    cpu = torch.device("cpu")
    loads = [
        batch_loader(ROWS, MicroBatches(plan), 5, Reading(workers=workers), cpu, replace_bad=False)
        for workers in (0, 2)
    ]
    seeds = [[loaded.sample["seed"] for batch in loader for loaded in batch] for loader in loads]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 8


def test_two_processes_train_what_one_trains_in_twice_the_batches(python, tmp_path):
    sgd = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)}
    alone, summary, lines = run(
        tmp_path / "one", batch_size=2, buckets=BUCKETS, accumulate=4, num_epochs=2, learning_rate=1e-2, **sgd
    )
    root = Path(__file__).parents[3]
    launch = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone"]
    done = subprocess.run(
        [python, "-m", *launch, "-m", "tests.dsctl_core.training.two_processes", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"process-{rank}.json").read_text()) for rank in (0, 1))
    assert first["weight"] == second["weight"]
    assert first["weight"] == pytest.approx(alone.pipe.dit.weight.flatten().tolist(), abs=1e-6)
    together = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert together == pytest.approx([line["loss"] for line in lines], abs=1e-5)
    in_turn = [rows for pair in zip(first["seen"], second["seen"], strict=True) for rows in pair]
    assert in_turn[: len(alone.seen) // 2] == alone.seen[: len(alone.seen) // 2]
