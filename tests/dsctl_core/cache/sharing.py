"""Run as a program: several workers make one cache, killed at random and started again; says what came of it.

    python -m ... MODEL DATA FOLDER WORKERS KILLS_OF_EACH [ADDRESS]

With an ADDRESS they write there, and into a folder the one worker that nobody disturbs. Each worker is a fork of this
process, so that what takes seconds to import is imported once.
"""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from dsctl_core.cache import shards
from dsctl_core.cache.verify import find_problems
from dsctl_core.checkpoint.build import component_class
from dsctl_core.commands.cache import make_cache
from dsctl_core.errors import DsctlError
from dsctl_core.families import load_family
from dsctl_core.options import CacheOptions
from dsctl_core.remote.store import Remote
from dsctl_core.stages import encode, share
from dsctl_core.training.plan import encode as encode_plan
from tests.dsctl_core.cache.killing import content

BAD = 5  # a row that the model cannot encode
STEP = 0.05  # seconds for each input on top, so that a kill comes in the midst of the work


def start(model: str, data: str, out: Path | str, log: Path, shared: bool) -> int:
    """Fork a process that encodes into `out` and writes down the key of each input that it has encoded."""
    child = os.fork()
    if child:
        return child
    real = encode.make_part
    descriptor = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def make_part(values: Any, dtype: Any) -> Any:
        time.sleep(STEP if shared else 0)
        made = real(values, dtype)
        os.write(descriptor, f"{shards.hashlib.sha256(repr(made).encode()).hexdigest()}\n".encode())
        return made

    def refuse_one(values: Any, dataset: Any, job: Any) -> None:
        if job.row == BAD:
            raise DsctlError(f"{dataset.location(job.row)}: it cannot be encoded", hint="leave it out")

    encode.make_part, encode._require_finite = make_part, refuse_one
    base = {"model": model, "dataset_base_path": data, "output_path": out, "device": "cpu", "on_bad_sample": "skip"}
    code = 1
    try:
        make_cache(CacheOptions(**base, shared=shared))
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)


def fetch(address: str, folder: Path) -> None:
    """Copy all that is at an address into a folder."""
    remote = Remote(address)
    for entry in remote.list():
        (folder / entry.name).parent.mkdir(parents=True, exist_ok=True)
        (folder / entry.name).write_bytes(remote.read(entry))


def main() -> None:
    assert encode_plan  # with all that it imports
    model, data, folder, workers, kills = sys.argv[1], sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:6])
    encode.PARTS_IN_A_SHARD = shards.PARTS_IN_A_SHARD = 4
    share.LOOKING = 0.05
    for component in load_family("qwen-image").components:
        component_class(component)
    _, status = os.waitpid(start(model, data, folder / "alone", folder / "alone.log", shared=False), 0)
    assert os.waitstatus_to_exitcode(status) == 0

    address = sys.argv[6] if len(sys.argv) > 6 else None
    out, log, rng = address or folder / "shared", folder / "shared.log", random.Random(0)
    log.touch()
    running = [start(model, data, out, log, shared=True) for _ in range(workers)]
    inputs = len((folder / "alone.log").read_text().split())
    killed, at_kills = 0, list[int]()
    for number in sorted(range(workers * kills), key=lambda _: rng.random()):
        # When so many inputs are encoded: over all of the work, and in its midst
        wanted, until = (len(at_kills) + rng.random()) / (workers * kills) * inputs, time.monotonic() + 60
        while len(log.read_text().split()) < wanted and time.monotonic() < until:
            time.sleep(0.01)
        at_kills.append(len(log.read_text().split()))
        place = number % workers
        os.kill(running[place], signal.SIGKILL)
        _, status = os.waitpid(running[place], 0)
        killed += os.waitstatus_to_exitcode(status) == -signal.SIGKILL  # it may have been done before
        running[place] = start(model, data, out, log, shared=True)
    codes = [os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in running]
    shared = folder / "shared"
    if address is not None:
        fetch(address, shared)
    lines = log.read_text().split()
    counts = collections.Counter(lines)
    told = {
        "codes": codes,
        "differs": sorted({name for name, _ in content(shared).items() ^ content(folder / "alone").items()}),
        "names": sorted(path.name for path in shared.iterdir()),
        "problems": [str(each) for each in find_problems(shared)],
        "skipped": [json.loads(line)["row"] for line in (shared / "skipped.jsonl").read_text().splitlines()],
        "kills": killed,
        "at_kills": at_kills,
        "inputs": inputs,
        "encoded": len(lines),
        "most_often": max(counts.values()),
    }
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
