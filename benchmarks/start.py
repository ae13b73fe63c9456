"""Measure what a start costs by the number of rows: the first, the next one, and beside them a start on ten rows.

    python -m benchmarks.start                          # 100,000 pictures, a table of 1,000,000 rows, 20,000 entries
    python -m benchmarks.start --pictures 2000 --rows 20000 --entries 2000

Each start is a process of its own that plans a training on the embedded model: it reads the table, checks the files and
identifies the dataset, and loads no weights. Counted are the pictures that are opened and asked for their state, CPU
seconds, and the instructions of the process (`perf stat -e instructions:u`, where the machine counts them); rounds take
turns. For the table, resident memory by row; for a cache, a random read by the number of its entries.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
KINDS = 64  # different pictures
FEW = 10  # rows of the start beside


def write_pictures(folder: Path, count: int) -> None:
    """Write a dataset of small pictures, three JPEGs and a PNG of each four, a thousand to a folder."""
    from PIL import Image

    encoded = []
    for number in range(KINDS):
        draw = random.Random(number)
        size = draw.choice([(64, 64), (64, 80), (80, 64)])
        stream, suffix = BytesIO(), "png" if number % 4 == 3 else "jpg"
        picture = Image.frombytes("RGB", (8, 8), draw.randbytes(192)).resize(size, Image.Resampling.BICUBIC)
        picture.save(stream, "PNG" if suffix == "png" else "JPEG")
        encoded.append((stream.getvalue(), suffix))
    lines = ["image,prompt"]
    for number in range(count):
        content, suffix = encoded[number % KINDS]
        name = f"{number // 1000:04d}/{number:07d}.{suffix}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        lines.append(f"{name},a picture of a small thing number {number}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def one_start(folder: Path) -> dict[str, Any]:
    """Plan a training on a dataset, and return what that took; run in a process of its own."""
    from dsctl_core.options import TrainOptions
    from dsctl_core.progress import NoProgress
    from dsctl_core.training.output.metadata import header_metadata
    from dsctl_core.training.plan.plan import plan_training

    opened = asked = 0
    real = os.stat

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal opened
        if event == "open" and str(arguments[0]).endswith((".png", ".jpg")):
            opened += 1

    def stat(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        nonlocal asked
        asked += str(path).endswith((".png", ".jpg"))
        return real(path, *args, **kwargs)

    sys.addaudithook(hook)
    os.stat = stat  # type: ignore[assignment]
    began = time.process_time()
    options = TrainOptions(
        model="tiny",
        dataset_base_path=folder,
        lora_rank=2,
        max_steps=1,
        output_path=folder.parent / "out",
        device="cpu",
    )
    plan = plan_training(options, NoProgress())
    header_metadata(options.adapter, plan.model, plan.source)
    plan.accelerator.end_training()
    return {"opened": opened, "asked": asked, "dataset_cpu": time.process_time() - began}


def start_process(folder: Path, cache: Path) -> dict[str, Any]:
    """Run `one_start` in a process; return also its whole CPU seconds, and its instructions where they are counted."""
    command = [sys.executable, "-m", "benchmarks.start", "--one", str(folder)]
    counts = cache.parent / "perf.csv"
    if shutil.which("perf"):
        command = ["perf", "stat", "-x", ",", "-e", "instructions:u", "-o", str(counts), "--", *command]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    found = {**json.loads(told), "cpu": usage.ru_utime + usage.ru_stime}
    lines = counts.read_text().splitlines() if counts.exists() else []
    number = lines[-1].split(",")[0] if lines else ""
    return {**found, **({"instructions": int(number)} if number.isdecimal() else {})}


def measure_starts(place: Path, pictures: int, rounds: int) -> dict[str, Any]:
    """Compare starts on many pictures, the first and the next, with starts on a few."""
    for name, count in (("few", FEW), ("many", pictures)):
        write_pictures(place / name / "data", count)
    time.sleep(1)  # what was written a moment ago is not remembered
    starts: dict[str, list[dict[str, Any]]] = {"few": [], "first": [], "next": []}
    for number in range(rounds):
        own = place / f"cache{number}"
        start_process(place / "few" / "data", own)
        starts["first"].append(start_process(place / "many" / "data", own))
        starts["few"].append(start_process(place / "few" / "data", own))
        starts["next"].append(start_process(place / "many" / "data", own))
    facts: dict[str, Any] = {"pictures": pictures, "starts": starts}
    for field in ("instructions", "cpu"):
        if all(field in each for own in starts.values() for each in own):
            pairs = zip(starts["next"], starts["few"], strict=True)
            facts[f"next_beside_few_{field}"] = median(one[field] / other[field] for one, other in pairs)
    facts["first_cpu_seconds_more"] = median(
        one["cpu"] - other["cpu"] for one, other in zip(starts["first"], starts["few"], strict=True)
    )
    return facts


def measure_rows(place: Path, rows: int) -> dict[str, float]:
    """Return the resident bytes by row of a table of `rows`, each kind read in a process of its own."""
    import pyarrow
    import pyarrow.parquet

    names = [f"{number:07d}.png" for number in range(rows)]
    prompts = [f"a small round ball {number}" for number in range(rows)]
    pairs = list(zip(names, prompts, strict=True))
    (place / "t.csv").write_text("image,prompt\n" + "".join(f"{name},{prompt}\n" for name, prompt in pairs))
    lines = (json.dumps({"image": name, "prompt": prompt}) + "\n" for name, prompt in pairs)
    (place / "t.jsonl").write_text("".join(lines))
    pyarrow.parquet.write_table(pyarrow.table({"image": names, "prompt": prompts}), place / "t.parquet")
    found = {}
    for kind in ("csv", "jsonl", "parquet"):
        command = [sys.executable, "-m", "benchmarks.start", "--table", str(place / f"t.{kind}")]
        found[kind] = json.loads(subprocess.check_output(command, cwd=REPOSITORY))
    return found


def one_table(path: Path) -> float:
    """Read a table and return the resident bytes by row."""
    import psutil
    import pyarrow.parquet  # noqa: F401 - its own memory does not count

    from dsctl_core.data.metadata import read_metadata

    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    metadata = read_metadata(path)
    gc.collect()
    return (process.memory_info().rss - before) / len(metadata.rows)


def measure_reads(place: Path, entries: int, reads: int = 500) -> dict[int, float]:
    """Return the microseconds of a random read from caches of a thousand entries up to `entries`, in turns."""
    import torch

    from dsctl_core.cache.manifest import Entry, Recipe, manifest_texts, write_manifest
    from dsctl_core.cache.reader import CachedDataset
    from dsctl_core.cache.shards import FOLDER, PARTS_IN_A_SHARD, make_part, write_shard
    from dsctl_core.files.digest import digest

    os.environ["XDG_CACHE_HOME"] = str(place / "cache")
    caches = {}
    for count in sorted({min(1000, entries), entries}):
        folder = place / f"entries{count}"
        (folder / FOLDER).mkdir(parents=True)
        names, sizes = {}, {}
        for first in range(0, count, PARTS_IN_A_SHARD):
            numbers = range(first, min(first + PARTS_IN_A_SHARD, count))
            values = {"shared.latents": torch.zeros(1, 4, 8, 8), "posi.embeds": torch.zeros(1, 16, 32)}
            made = write_shard(folder, {digest(n): make_part({**values, "n": n}, torch.float32) for n in numbers})
            names |= dict.fromkeys(map(digest, numbers), made.name)
            sizes[made.name] = made.stat().st_size
        rows = [Entry(number, digest([number]), {}, (digest(number),)) for number in range(count)]
        recipe = Recipe("qwen-image", "sft", ("dit",), (), (), {}, "float32", {}, (), {}, {})
        write_manifest(folder, *manifest_texts(recipe, rows, names, sizes, 0, []))
        caches[count] = CachedDataset(folder)
        caches[count].check_shards()
    seconds: dict[int, list[float]] = {count: [] for count in caches}
    draw = random.Random(0)
    for _ in range(6):
        for count, dataset in caches.items():
            wanted = [draw.randrange(count) for _ in range(reads)]
            began = time.process_time()
            for number in wanted:
                dataset[number]
            seconds[count].append((time.process_time() - began) / reads)
    return {count: 1e6 * median(own[1:]) for count, own in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--entries", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build" / "benchmark_start.json")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--table", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None or options.table is not None:
        print(json.dumps(one_table(options.table) if options.one is None else one_start(options.one)))
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        starts = measure_starts(place, options.pictures, options.rounds)
        rows = measure_rows(place, options.rows)
        reads = measure_reads(place, options.entries)
    facts = {"starts": starts, "bytes_a_row": rows, "microseconds_a_read": reads}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    first, following = starts["starts"]["first"][-1], starts["starts"]["next"][-1]
    print(f"{starts['pictures']:,} pictures: first start {starts['first_cpu_seconds_more']:.2f} CPU seconds more than")
    print(f"  on {FEW}; opened {first['opened']:,}, then {following['opened']:,}; states {following['asked']:,}")
    for field in ("instructions", "cpu"):
        if f"next_beside_few_{field}" in starts:
            print(f"  next start beside one on {FEW} rows, {field}: {starts[f'next_beside_few_{field}']:.3f}")
    print("bytes a row: " + ", ".join(f"{kind} {size:.0f}" for kind, size in rows.items()))
    print("a random read: " + ", ".join(f"{count:,} entries {each:.0f} us" for count, each in reads.items()))


if __name__ == "__main__":
    main()
