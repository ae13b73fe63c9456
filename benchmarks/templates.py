"""Measure what a template costs in a picture, and what two stages save in training one, side by side in one run.

    python -m benchmarks.templates                  # prints the table, writes build/templates.json; 5 to 10 minutes
    python -m benchmarks.templates --only infer     # a part: infer or train

The template is the brightness example's, with the sizes of the random medium model of two_stages.py; see README.md.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.medium import MEDIUM, dsctl, measure_and_tell, parser, seconds_of, write_dataset, write_model
from benchmarks.run import REPOSITORY, Side, describe_machine, take_turns

EXAMPLE = REPOSITORY / "examples" / "template_brightness" / "template" / "model.py"
SIZES = re.compile(r"^BLOCKS, HEADS, HEAD_DIM = \d+, \d+, \d+", re.MULTILINE)
PARTS = ("infer", "train")
WORKER = "benchmarks.ours_templates"


def write_template(folder: Path, tiny: bool) -> None:
    """Write the example's template with the blocks and heads of the model that write_model makes."""
    from dsctl_core.families.qwen_image.family import TINY

    config = {**TINY["dit"], **({} if tiny else MEDIUM["dit"])}
    sizes = (config["num_layers"], config["num_attention_heads"], config["attention_head_dim"])
    text = EXAMPLE.read_text(encoding="utf-8")
    changed, count = SIZES.subn(f"BLOCKS, HEADS, HEAD_DIM = {', '.join(map(str, sizes))}", text)
    if count != 1:
        raise SystemExit(f"{EXAMPLE} does not set BLOCKS, HEADS, HEAD_DIM in one line")
    folder.mkdir()
    (folder / "model.py").write_text(changed, encoding="utf-8")


def write_rows(dataset: Path, samples: int) -> Path:
    """Write a table that gives each picture of the dataset a scale, and return its path."""
    rows = [
        {"image": f"{n}.png", "prompt": f"picture number {n}", "template_inputs": {"scale": n / samples}}
        for n in range(samples)
    ]
    path = dataset / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def compare_pictures(settings: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Compare the CPU seconds of a step of a picture, with the template and without it."""
    times: dict[str, list[float]] = {"steered": [], "plain": []}
    with tempfile.TemporaryDirectory() as folder:
        side = Side(WORKER, "infer", settings, folder)
        for number in range(rounds + 1):
            facts = side.round()
            for key, found in times.items():
                if number > 0:  # the first round warms up
                    found.append(facts[key] / settings["inference_steps"])
        side.stop()
    name = "a step of a picture, CPU time, with a template, beside without"
    return {"name": name, "ours": times["steered"], "plain": times["plain"]}


def compare_training(settings: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Compare the seconds of a step of training a template, from a cache and in one stage."""
    with tempfile.TemporaryDirectory() as folder:
        sides = {}
        for side, cached in (("ours", True), ("plain", False)):
            Path(folder, side).mkdir()
            sides[side] = Side(WORKER, "train", {**settings, "from_cache": cached}, str(Path(folder, side)))
        name = "a step of training a template, from a cache, beside one stage"
        return asdict(take_turns(name, "s", settings["steps"], sides, rounds))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make the model, the data and the template, and do the comparisons."""
    model, data, template = folder / "model", folder / "data", folder / "template"
    write_model(model, medium=not options.tiny)
    write_dataset(data, options.samples, options.size)
    metadata = write_rows(data, options.samples)
    write_template(template, options.tiny)
    settings: dict[str, Any] = {
        "model": str(model),
        "dataset": str(data),
        "metadata": str(metadata),
        "template": str(template),
        "cache": str(folder / "cache"),
        "device": "cpu",
        "size": options.size,
        "prompt": "a fox on a blue background",
        "inference_steps": options.inference_steps,
        "cfg_scale": 1.0,
        "steps": options.steps,
        "batch_size": 1,
        "learning_rate": 1e-4,
    }
    results = []
    if options.only in (None, "infer"):
        results.append(compare_pictures(settings, options.rounds))
    if options.only in (None, "train"):
        source = ["--model", model, "--dataset-base-path", data, "--dataset-metadata-path", metadata]
        wanted = ["--template", template, "--trust-template", "--extra-inputs", "template_inputs"]
        seconds_of(dsctl("cache", *source, *wanted, "--output-path", folder / "cache"))
        results.append(compare_training(settings, options.rounds))
    return {"machine": describe_machine(None), "settings": settings, "results": results}


def report(numbers: dict[str, Any]) -> str:
    """Return the numbers as a table; a ratio below 1 is less time than what it is compared with."""
    lines = ["| | dsctl | beside it | ratio |", "|---|---|---|---|"]
    for row in numbers["results"]:
        ratio = median(a / b for a, b in zip(row["ours"], row["plain"], strict=True))
        lines.append(
            f"| {row['name']} | {median(row['ours']):.4g} s | {median(row['plain']):.4g} s | **{ratio:.3f}** |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    options = parser("templates", __doc__.splitlines()[0], rounds=9, steps=4, samples=8)
    options.add_argument("--inference-steps", type=int, default=10, help="of a picture (default: %(default)s)")
    options.add_argument("--only", choices=PARTS, help="measure only this")
    measure_and_tell(options.parse_args(arguments), measure, report)


if __name__ == "__main__":
    main()
