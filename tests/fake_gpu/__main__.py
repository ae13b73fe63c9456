"""Train models at their published size on fake CUDA tensors, or draw, and print what was counted as JSON, a line each.

python -m tests.fake_gpu '{"model": "qwen-image", "lora_rank": 32}' --depth 2
python -m tests.fake_gpu '{"model": "qwen-image", "draw": true}' --card 24
python -m tests.fake_gpu --matrix
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.fake_gpu.machine import GIB, load_device, pretended_gpu

REPOSITORY = Path(__file__).parents[2]


def main() -> None:
    """Run each of the trainings and drawings that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.fake_gpu", description=__doc__.splitlines()[0])
    what = "options of a training as JSON; encode: encode on the device too; draw: draw instead. With --matrix: a model"
    parser.add_argument("asked", nargs="*", help=what)
    parser.add_argument("--depth", type=int, help="blocks of each kind (default: all, 0 too; of the matrix 2)")
    parser.add_argument("--card", type=int, default=80, help="GiB of memory that the device has")
    parser.add_argument(
        "--matrix", action="store_true", help="compare predictions, for a model of each family or those named"
    )
    parser.add_argument("--compiled", action="store_true", help="count a step of each training with compiled blocks")
    given = parser.parse_args()
    os.environ["DSCTL_SKIP_DOWNLOAD"] = "1"
    load_device(REPOSITORY / "build" / "fake_gpu")
    with tempfile.TemporaryDirectory() as folder, pretended_gpu(given.card * GIB):
        os.chdir(folder)
        if given.matrix:
            sys.exit(_compare(tuple(given.asked), 2 if given.depth is None else given.depth or None))
        if given.compiled:
            _plan(list(map(json.loads, given.asked)))
            return
        rows: dict[str, Any] = {}
        for text in given.asked:
            _run(json.loads(text), given.depth or None, rows)


def _run(options: dict[str, Any], depth: int | None, rows: dict[str, Any]) -> None:
    from benchmarks.model_data import write_data
    from tests.fake_gpu.drawing import draw
    from tests.fake_gpu.training import train

    began = time.perf_counter()
    draws, data = options.pop("draw", False), write_data(options["model"], Path())
    own = {"encode": options.pop("encode", False), "shorter": options.pop("shorter", 0)}
    found = asdict(draw(depth, **options) if draws else train(depth, **own, rows=rows, **{**data, **options}))
    seconds = time.perf_counter() - began
    _say(json.dumps({"asked": options, **found, "seconds": round(seconds, 1)}))


def _plan(trainings: list[dict[str, Any]]) -> None:
    from benchmarks.model_data import write_data
    from tests.fake_gpu.compiled import compiled_step

    for options in trainings:
        found = compiled_step(**{**write_data(options["model"], Path()), **options})
        _say(json.dumps({"asked": options, **found}))


def _compare(models: tuple[str, ...], depth: int | None) -> int:
    """Print the matrix; return the number of its lines that do not hold."""
    from tests.fake_gpu.matrix import HEADER, MODELS, matrix

    _say(HEADER)
    wrong = 0
    for line in matrix(models or MODELS, depth):
        _say(str(line))
        wrong += not line.holds
    return wrong


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
