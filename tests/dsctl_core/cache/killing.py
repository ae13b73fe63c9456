"""Run as a program: kills `dsctl cache` with SIGKILL at random points, lets it go on, and says what came of it.

Each run is a fork of this process, so that what takes seconds to import is imported once.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from dsctl_core.cache import shards
from dsctl_core.cache.verify import find_problems
from dsctl_core.checkpoint.build import component_class
from dsctl_core.commands.cache import make_cache
from dsctl_core.families import load_family
from dsctl_core.options import CacheOptions
from dsctl_core.stages import encode
from dsctl_core.training.plan import encode as encode_plan

POINTS = 10


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make(model: str, data: str, out: Path) -> None:
    make_cache(CacheOptions(model=model, dataset_base_path=data, output_path=out, device="cpu", batch_size=2))


def start(model: str, data: str, out: Path) -> int:
    """Fork a process that makes the cache, and return its id."""
    child = os.fork()
    if child:
        return child
    make(model, data, out)
    os._exit(0)


def run(model: str, data: str, out: Path) -> float:
    """Make the cache undisturbed, and return how long that took."""
    began = time.perf_counter()
    _, status = os.waitpid(start(model, data, out), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return time.perf_counter() - began


def main() -> None:
    assert encode_plan  # with all that it imports
    model, data, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    encode.PARTS_IN_A_SHARD = shards.PARTS_IN_A_SHARD = 4
    # Imported, not run: a process with threads of its own must not be forked.
    for component in load_family("qwen-image").components:
        component_class(component)
    seconds = min(run(model, data, folder / "whole"), run(model, data, folder / "again"))
    expected = content(folder / "whole")
    result: dict[str, list[int]] = {"equal": [], "shards_at_the_kill": [], "problems": []}
    rng = random.Random(0)
    for _ in range(POINTS):
        out = folder / "killed"
        child = start(model, data, out)
        time.sleep(rng.uniform(0.05, 1) * seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        result["shards_at_the_kill"].append(len(list(out.glob("shards/*.safetensors"))))
        run(model, data, out)
        result["equal"].append(int(content(out) == expected))
        result["problems"].append(len(list(find_problems(out))))
        shutil.rmtree(out)
    told = {**result, "shards": len(list((folder / "whole" / "shards").iterdir()))}
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
