"""Measure `dsctl dataset validate` beside plain Pillow decoding, and how long the order of samples takes to start.

    python -m benchmarks.data                 # prints the results and writes build/benchmark_data.json
    python -m benchmarks.data --pictures 40 --rounds 3

Both sides do the same files in the same process and take turns, each going first in every other round. On one core what
is compared is CPU time; over several cores, wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from dsctl_core.data import ImageCropAndResize, UnifiedDataset
from dsctl_core.data.sampler import BatchPlan
from dsctl_core.data.validated import Checks
from dsctl_core.data.validation import cores, validate_dataset

REPOSITORY = Path(__file__).resolve().parents[1]


def write_pictures(folder: Path, count: int, side: int) -> None:
    """Write pictures with large shapes and fine grain, as photographs have: of each four, three JPEGs and a PNG."""
    lines = ["image,prompt"]
    for number in range(count):
        draw = random.Random(number)
        width, height = draw.choice([(side, side), (side, side * 3 // 4), (side * 3 // 4, side)])
        shapes = Image.frombytes("RGB", (8, 8), draw.randbytes(192)).resize((width, height), Image.Resampling.BICUBIC)
        grain = Image.effect_noise((width, height), 24).convert("RGB")
        name = f"{number}.png" if number % 4 == 3 else f"{number}.jpg"
        Image.blend(shapes, grain, 0.25).save(folder / name)
        lines.append(f"{name},picture {number}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def in_turns(sides: dict[str, Callable[[], None]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Return the seconds of each side's rounds, after one that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            began = clock()
            sides[name]()
            if number > 0:
                seconds[name].append(clock() - began)
    return seconds


def measure_validation(folder: Path, rounds: int) -> dict[str, Any]:
    """Compare validating a dataset with decoding its files, on one core and on all."""
    dataset = UnifiedDataset(folder)
    paths = [folder / row["image"] for row in dataset.metadata.rows]

    def decode() -> None:
        for path in paths:
            with Image.open(path) as image:
                image.load()

    def validate(workers: int) -> Callable[[], None]:
        def work() -> None:
            found = validate_dataset(dataset, Checks(ImageCropAndResize(max_pixels=1 << 20), workers=workers))
            assert len(found.files) == len(paths) and not found.count("error")

        return work

    one = in_turns({"validate": validate(1), "decode": decode}, rounds, time.process_time)
    ratios = [plain / ours for ours, plain in zip(one["validate"], one["decode"], strict=True)]
    several = in_turns({"one": validate(1), "all": validate(cores())}, rounds, time.perf_counter)
    gains = [alone / together for alone, together in zip(several["one"], several["all"], strict=True)]
    return {
        "pictures": len(paths),
        "validate_images_per_cpu_second": len(paths) / median(one["validate"]),
        "decode_images_per_cpu_second": len(paths) / median(one["decode"]),
        "share_of_decoding_speed": median(ratios),
        "cores": cores(),
        "times_as_fast_on_all_cores": median(gains),
        "seconds": {**one, **several},
    }


def measure_sampler(rows: int = 12, repeat: int = 10**9) -> dict[str, Any]:
    """Time the first batch of an epoch of rows * repeat samples, and count what it allocates."""
    seconds = []
    for seed in range(20):
        began = time.perf_counter()
        BatchPlan(rows * repeat, 4, seed, [number % 3 for number in range(rows)]).batch(0, 0)
        seconds.append(time.perf_counter() - began)
    tracemalloc.start()
    plan = BatchPlan(rows * repeat, 4, 0, [number % 3 for number in range(rows)])
    plan.batch(0, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    began = time.perf_counter()
    for number in range(5000):
        plan.batch(1, number)
    per_sample = (time.perf_counter() - began) / 20_000
    return {
        "samples_an_epoch": rows * repeat,
        "start_ms": 1000 * max(seconds),
        "start_bytes": peak,
        "microseconds_a_sample": 1e6 * per_sample,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--side", type=int, default=1024, help="longer side of the pictures, in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build" / "benchmark_data.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), options.pictures, options.side)
        validation = measure_validation(Path(folder), options.rounds)
    sampler = measure_sampler()
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "Pillow": version("Pillow")},
        "validation": validation,
        "sampler": sampler,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(
        f"validate: {validation['validate_images_per_cpu_second']:.1f} images per CPU second, "
        f"{validation['share_of_decoding_speed']:.2f} of plain Pillow decoding "
        f"({validation['decode_images_per_cpu_second']:.1f}); "
        f"{validation['times_as_fast_on_all_cores']:.2f} times as fast on {validation['cores']} cores"
    )
    print(
        f"order of {sampler['samples_an_epoch']:,} samples: starts in {sampler['start_ms']:.2f} ms with "
        f"{sampler['start_bytes']:,} bytes; then {sampler['microseconds_a_sample']:.1f} us a sample"
    )


if __name__ == "__main__":
    main()
