"""Measure what grows with the number of samples: the order, resuming in it, a table in memory, requests to a store.

    python -m benchmarks.scale                          # 1,000 to 1,000,000,000 samples; about a minute
    python -m benchmarks.scale --table 20000            # a smaller table

Of each number of samples: what the first batch of process 63 of 64 takes from nothing (milliseconds, and bytes), the
same in the middle of an epoch, as on resuming, and microseconds a sample from then on. The table is read at several
sizes up to `--table` rows. Requests are those of a cache of so many samples with two parts each, read by one machine
that has room for it, as a dry run counts them: manifest and index, a listing of the shards, 1000 at a time, and a look
and a download for each shard.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

from dsctl_core.data.metadata import read_metadata
from dsctl_core.data.sampler import BatchPlan
from dsctl_core.stages.encode import parts_in_a_shard
from dsctl_core.training.dry_run.traffic import requests_of_reading
from dsctl_core.training.loop.batches import MicroBatches

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLES = [10**power for power in range(3, 10)]
BATCH, PROCESSES, PARTS = 4, 64, 2


def measure_order(samples: int) -> dict[str, float]:
    """Return what the order of `samples` costs the last of 64 processes."""

    def first_batch(share: float) -> tuple[float, list[Any]]:
        began = time.perf_counter()
        rounds = MicroBatches(BatchPlan(samples, BATCH, 0), PROCESSES - 1, PROCESSES)
        rounds.first = int(share * len(rounds))
        batch = next(iter(rounds))
        return 1000 * (time.perf_counter() - began), batch

    first_batch(0)  # what is imported or compiled at first does not count
    tracemalloc.start()
    first_batch(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    start, _ = first_batch(0)
    middle, _ = first_batch(0.5)
    plan = BatchPlan(samples, BATCH, 0)
    began = time.perf_counter()
    for number in range(2000):
        plan.batch(1, number % len(plan))
    per_sample = 1e6 * (time.perf_counter() - began) / (2000 * BATCH)
    found = {"start_ms": start, "resume_ms": middle, "bytes": peak, "microseconds_a_sample": per_sample}
    return {name: round(value, 2) for name, value in found.items()}


def requests_of(samples: int) -> dict[str, int]:
    """Return the shards of a cache, and the requests that reading all of it takes, of 64 or more parts a shard."""
    shards = PARTS * -(-samples // parts_in_a_shard(samples))
    return {"shards": shards, "requests": round(requests_of_reading(shards, shards))}


def measure_table(place: Path, rows: int) -> dict[str, float]:
    """Return the bytes and the microseconds by row of a table of `rows`."""
    path, numbers = place / f"{rows}.csv", range(rows)
    lines = (
        f"{number // 1000:04d}/{number:07d}.jpg,a picture of a small thing number {number}\n" for number in numbers
    )
    path.write_text("image,prompt\n" + "".join(lines), encoding="utf-8")
    tracemalloc.start()
    metadata = read_metadata(path)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    began = time.process_time()
    read_metadata(path)
    seconds = time.process_time() - began
    count = len(metadata.rows)
    return {"bytes_a_row": round(held / count, 1), "microseconds_a_row": round(1e6 * seconds / count, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=int, default=1_000_000, help="rows of the largest table")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build" / "benchmark_scale.json")
    options = parser.parse_args()
    order = {samples: {**measure_order(samples), **requests_of(samples)} for samples in SAMPLES}
    with tempfile.TemporaryDirectory() as folder:
        sizes = [rows for rows in SAMPLES if rows < options.table]
        tables = {rows: measure_table(Path(folder), rows) for rows in [*sizes, options.table]}
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "samples": order,
        "table": tables,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    for samples, found in order.items():
        print(
            f"{samples:>13,} samples: order in {found['start_ms']:.2f} ms and {found['bytes']:,.0f} bytes, resumed in "
            f"{found['resume_ms']:.2f} ms, {found['microseconds_a_sample']:.1f} us a sample; "
            f"{found['shards']:,} shards, {found['requests']:,} requests"
        )
    for rows, found in tables.items():
        each = f"{found['bytes_a_row']:.0f} bytes and {found['microseconds_a_row']:.2f} us"
        print(f"a table of {rows:,} rows: {each} a row")


if __name__ == "__main__":
    main()
