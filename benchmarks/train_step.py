"""Measure a training step on cached inputs beside plain diffusers and peft, at equal settings, side by side in one run.

    python -m benchmarks.train_step                      # prints the table, writes build/train_step.json; 10 minutes
    python -m benchmarks.train_step --only bf16 --rounds 3
    python -m benchmarks.train_step --family wan         # or z-image, flux1, qwen-image-edit

The model is a random one of medium size, that of two_stages.py for Qwen-Image. Both sides take turns, round by round;
see README.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import families
from benchmarks.medium import dsctl, measure_and_tell, parser, seconds_of, write_dataset, write_model, write_z_image
from benchmarks.run import REPOSITORY, Side, describe_machine, finish, in_turn, take_turns
from benchmarks.two_stages import plain

PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "fp32": ("step, float32", {"precision": "no", "recompute": False}),
    "fp32-recompute": ("step, float32, blocks recomputed", {"precision": "no", "recompute": True}),
    "bf16": ("step, bfloat16", {"precision": "bf16", "recompute": False}),
    "bf16-recompute": ("step, bfloat16, blocks recomputed", {"precision": "bf16", "recompute": True}),
}
WRITERS = {"qwen-image": write_model, "z-image": write_z_image}  # the others are in families.py
FAMILIES = (*WRITERS, *families.MEDIUM)
FIRST = "first"  # the part that is whole processes, from the command to the end of the first step


def compare_steps(name: str, settings: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Compare the seconds of a step, and the most memory that either process had resident."""
    with tempfile.TemporaryDirectory() as folder:
        modules = {"ours": "benchmarks.ours_step", "plain": "benchmarks.plain_step"}
        sides = {side: Side(module, "step", settings, folder) for side, module in modules.items()}
        result = take_turns(name, "s", settings["steps"], sides, rounds)
    return {
        "name": name,
        "ours": result.ours,
        "plain": result.plain,
        "ours_cpu": result.ours_cpu,
        "plain_cpu": result.plain_cpu,
        "ours_memory": result.ours_memory,
        "plain_memory": result.plain_memory,
    }


def compare_first(settings: dict[str, Any], folder: Path, rounds: int) -> dict[str, Any]:
    """Compare whole processes that make one step: seconds, CPU seconds and memory."""
    facts: dict[str, Any] = {"name": "from the command to the end of the first step, float32"}
    for side in ("ours", "plain"):
        facts.update({side: [], f"{side}_cpu": [], f"{side}_memory": 0})
    train = ["train", "--lora-rank", settings["rank"], "--max-steps", 1, "--from-cache", settings["cache"]]
    beside = [sys.executable, "-m", "benchmarks.plain_step", "first"]
    beside.append(json.dumps({**settings, **PARTS["fp32"][1]}))
    for number in range(rounds + 1):
        ours = dsctl(*train, "--output-path", folder / f"first-{number}")
        for side, command in in_turn({"ours": ours, "plain": beside}, number):
            began = time.perf_counter()
            process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            process.returncode, memory, cpu = finish(process.pid)
            if process.returncode != 0:
                raise SystemExit(f"{side} failed with exit code {process.returncode}: {' '.join(command)}")
            facts[f"{side}_memory"] = max(facts[f"{side}_memory"], memory)
            if number > 0:  # the first round fills the disk cache
                facts[side].append(time.perf_counter() - began)
                facts[f"{side}_cpu"].append(cpu)
    return facts


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make model, dataset and cache, and do the comparisons."""
    model, data = folder / "model", folder / "data"
    further = options.family in families.MEDIUM
    if further:
        families.write_family(options.family, model, not options.tiny, options.size)
        families.write_family_dataset(options.family, data, options.samples, options.size)
    else:
        WRITERS[options.family](model, medium=not options.tiny)
        write_dataset(data, options.samples, options.size)
    settings: dict[str, Any] = {
        "model": str(model),
        "family": options.family,
        "dataset": str(data),
        "device": "cpu",
        "samples": options.samples,
        "steps": options.steps,
        "rank": 32,
        "learning_rate": 1e-4,
        "encoded": str(folder / "plain.safetensors"),
        "cache": str(folder / "cache"),
    }
    # A run has the precision of its cache.
    for precision, cache in (("no", folder / "cache"), ("bf16", folder / "cache-bf16")):
        place = ("--output-path", cache, "--mixed-precision", precision)
        flags = families.FLAGS.get(options.family, ())
        seconds_of(dsctl("cache", "--model", model, "--dataset-base-path", data, *flags, *place))
    if further:
        families.copy_cached(folder / "cache", Path(settings["encoded"]))
    else:
        apart = [sys.executable, "-m", "benchmarks.plain_z_image", json.dumps(settings)]
        seconds_of(apart if options.family == "z-image" else plain("write", settings))
    wanted = options.only or [*PARTS, FIRST]
    comparisons = []
    for part in wanted:
        if part == FIRST:
            comparisons.append(compare_first(settings, folder, options.rounds))
        else:
            name, changed = PARTS[part]
            cache = settings["cache"] + ("-bf16" if changed["precision"] == "bf16" else "")
            comparisons.append(compare_steps(name, {**settings, **changed, "cache": cache}, options.rounds))
    return {"machine": describe_machine(None), "settings": settings, "comparisons": comparisons}


def report(numbers: dict[str, Any]) -> str:
    """Return the numbers as a table: how many times as fast as what it is beside, and its share of memory."""
    heads = ("", "dsctl", "plain", "times as fast", "memory: dsctl", "plain", "ratio")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in numbers["comparisons"]:
        timed = [("ours", "plain", row["name"], "s")]
        if "ours_cpu" in row:
            timed.append(("ours_cpu", "plain_cpu", f"{row['name']}, CPU time", "CPU s"))
        for ours, other, name, unit in timed:
            speed = median(b / a for a, b in zip(row[ours], row[other], strict=True))
            memory = row["ours_memory"] / row["plain_memory"]
            lines.append(
                f"| {name} | {median(row[ours]):.4g} {unit} | {median(row[other]):.4g} {unit} | **{speed:.2f}** "
                f"| {row['ours_memory'] / 1e6:.0f} MB | {row['plain_memory'] / 1e6:.0f} MB | **{memory:.2f}** |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    options = parser("train_step", __doc__.splitlines()[0], rounds=9, steps=4, samples=8)
    options.add_argument("--family", choices=FAMILIES, default="qwen-image", help="default: %(default)s")
    options.add_argument("--only", choices=[*PARTS, FIRST], action="append", help="measure only this; can be repeated")
    measure_and_tell(options.parse_args(arguments), measure, report)


if __name__ == "__main__":
    main()
