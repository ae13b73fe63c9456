"""Measure the two stages beside the same work in plain diffusers and peft, side by side in one run. See README.md.

The model is a random one of medium size, made here by the official classes; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.medium import dsctl, measure_and_tell, parser, seconds_of, write_dataset, write_model
from benchmarks.run import Side, describe_machine, take_turns

DIFFSYNTH_BYTES = 5_770_000  # of one cached Qwen-Image sample at 1024 px, in bfloat16; measured with version 2.1.12
LONG_ROUNDS = 3  # of whole trainings, a minute or more each


def plain(case: str, settings: dict[str, Any]) -> list[str]:
    return [sys.executable, "-m", "benchmarks.plain_two_stages", case, json.dumps(settings)]


def whole_processes(
    name: str, ours: list[str], outputs: Path, beside: list[str], rounds: int, *, warm_up: bool = True
) -> tuple[str, list[float], list[float]]:
    """Compare two commands in turns, each first in every other round; `outputs` gets a folder for each of our runs.

    The first round warms up the disk's cache and is not counted, if `warm_up`: processes of a minute need none.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + warm_up):
        commands = [[*ours, "--output-path", str(outputs / f"{number}")], beside]
        for side in (0, 1) if number % 2 else (1, 0):
            seconds = seconds_of(commands[side])
            if number or not warm_up:
                times[side].append(seconds)
    return name, *times


def in_turns(name: str, case: str, settings: dict[str, Any], rounds: int) -> tuple[str, list[float], list[float]]:
    """Compare a case of both sides round by round."""
    with tempfile.TemporaryDirectory() as folder:
        modules = {"ours": "benchmarks.ours_two_stages", "plain": "benchmarks.plain_two_stages"}
        sides = {side: Side(module, case, settings, folder) for side, module in modules.items()}
        per_round = settings["samples"] if case == "encode" else settings["steps"] * settings["batch_size"]
        result = take_turns(name, "s", per_round, sides, rounds)
    return name, result.ours, result.plain


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Do all comparisons; the seconds are for a sample, or for a whole process."""
    model, data = folder / "model", folder / "data"
    write_model(model, medium=not options.tiny)
    write_dataset(data, options.samples, options.size)
    settings: dict[str, Any] = {
        "model": str(model),
        "dataset": str(data),
        "folder": str(folder),
        "device": "cpu",
        "samples": options.samples,
        "steps": options.steps,
        "rank": 32,
        "learning_rate": 1e-4,
        "encode_batch_size": options.encode_batch_size,
        "encoded": str(folder / "plain.safetensors"),
        "cache": str(folder / "cache"),
        "repeat": options.repeat,
    }
    wanted = [options.only] if options.only else ["encode", "cached", "start", "once"]
    source = ["--model", model, "--dataset-base-path", data]
    if {"cached", "start"} & set(wanted):
        seconds_of(dsctl("cache", *source, "--output-path", folder / "cache"))
    comparisons = []
    train = ["train", "--lora-rank", 32, "--learning-rate", 1e-4]
    if "encode" in wanted:
        comparisons.append(in_turns("encoding, beside one at a time", "encode", settings, options.rounds))
    if "cached" in wanted:
        for size in (1, 4):
            name = f"step from a cache, batch of {size}, a sample, beside tensors in memory"
            comparisons.append(in_turns(name, "cached", {**settings, "batch_size": size}, options.rounds))
    if "start" in wanted:
        if not (folder / "plain.safetensors").is_file():
            seconds_of(plain("write", settings))
        ours = dsctl(*train, "--from-cache", folder / "cache", "--max-steps", 12)
        beside = plain("start", {**settings, "steps": 12})
        name = "whole process of 12 cached steps"
        comparisons.append(whole_processes(name, ours, folder / "start", beside, options.rounds))
    if "once" in wanted:
        ours = dsctl(*train, *source, "--dataset-repeat", options.repeat)
        name = f"whole training of {options.repeat} repeats, beside one stage"
        beside, rounds = plain("once", settings), min(options.rounds, LONG_ROUNDS)
        comparisons.append(whole_processes(name, ours, folder / "once", beside, rounds, warm_up=False))
    return {
        "machine": describe_machine(None),
        "settings": settings,
        "bytes_at_1024": bytes_of_a_sample(folder) if options.only in (None, "size") else None,
        "comparisons": [{"name": name, "ours": ours, "plain": other} for name, ours, other in comparisons],
    }


def bytes_of_a_sample(folder: Path) -> float:
    """Return the bytes that one sample of 1024 px takes in a cache in bfloat16, with tiny text widths."""
    write_model(folder / "tiny", medium=False)
    write_dataset(folder / "large", 1, 1024)
    source = ["--model", folder / "tiny", "--dataset-base-path", folder / "large", "--mixed-precision", "bf16"]
    seconds_of(dsctl("cache", *source, "--output-path", folder / "large-cache"))
    return sum(path.stat().st_size for path in (folder / "large-cache").rglob("*") if path.is_file())


def report(numbers: dict[str, Any]) -> str:
    """Return the numbers as a table; a ratio below 1 is less time, or less room, than what it is compared with."""
    lines = ["| | dsctl | beside it | ratio |", "|---|---|---|---|"]

    def add(name: str, ours: str, other: str, ratio: float) -> None:
        lines.append(f"| {name} | {ours} | {other} | **{ratio:.3f}** |")

    steps = []
    for row in numbers["comparisons"]:
        ours, other = median(row["ours"]), median(row["plain"])
        add(row["name"], f"{ours:.4g} s", f"{other:.4g} s", median(map(truediv, row["ours"], row["plain"])))
        steps += [ours] if row["name"].startswith("step") else []
    if steps:
        one, four = steps
        add("a sample in a batch of 4, beside a batch of 1", f"{four:.4g} s", f"{one:.4g} s", four / one)
    if numbers["bytes_at_1024"]:
        size = numbers["bytes_at_1024"]
        add("a cached sample of 1024 px, beside DiffSynth's", f"{size / 1e6:.2f} MB", "5.77 MB", size / DIFFSYNTH_BYTES)
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    options = parser("two_stages", __doc__.splitlines()[0], rounds=7, steps=6, samples=16)
    options.add_argument("--repeat", type=int, default=10, help="times that they are seen (default: %(default)s)")
    options.add_argument("--encode-batch-size", type=int, default=8, help="of stage one (default: %(default)s)")
    options.add_argument("--only", choices=["encode", "cached", "start", "once", "size"], help="measure only this")
    measure_and_tell(options.parse_args(arguments), measure, report)


if __name__ == "__main__":
    main()
