"""Train models at their published size on fake CUDA tensors, and print what was counted as JSON, a line each.

python -m tests.fake_gpu '{"model": "qwen-image", "lora_rank": 32}' --depth 2
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

from tests.fake_gpu.machine import GIB, load_device, pretended_gpu

REPOSITORY = Path(__file__).parents[2]


def main() -> None:
    """Run each of the trainings that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.fake_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("asked", nargs="+", help="options of a training as JSON; see tests.fake_gpu.training")
    parser.add_argument("--depth", type=int, help="blocks of each kind (default: all)")
    parser.add_argument("--card", type=int, default=80, help="GiB of memory that the device has")
    given = parser.parse_args()
    os.environ["DSCTL_SKIP_DOWNLOAD"] = "1"
    load_device(REPOSITORY / "build" / "fake_gpu")
    from tests.fake_gpu.data import write_data
    from tests.fake_gpu.drawing import draw
    from tests.fake_gpu.training import train

    with tempfile.TemporaryDirectory() as folder, pretended_gpu(given.card * GIB):
        os.chdir(folder)
        for text in given.asked:
            began, options = time.perf_counter(), json.loads(text)
            draws, data = options.pop("draw", False), write_data(options["model"])
            own = {"encode": options.pop("encode", False), "shorter": options.pop("shorter", 0)}
            found = asdict(draw(given.depth, **options) if draws else train(given.depth, **own, **data, **options))
            seconds = time.perf_counter() - began
            sys.stdout.write(f"{json.dumps({'asked': options, **found, 'seconds': round(seconds, 1)})}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
