"""Measure a training step from a cache at an address, over a line of 1 Gbit/s on this machine, beside the disk.

    python -m benchmarks.remote_step                                  # prints the ratios; about ten minutes
    python -m benchmarks.remote_step --step 0.125 --samples 256       # as eight GPUs of a node ask for samples

Entries are of the size of a picture of 1328x1328 and a prompt of 256 tokens of Qwen-Image in bfloat16, 2.7 MB. The
loop, the order and the reading are the real ones; the network is a wait of `--step` seconds, as a GPU computes beside
the processor. A step is timed as metrics.jsonl has it, with the wait for its samples. The first epoch starts without
local copies and fetches the cache; the second has them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from benchmarks.slow_store import BUCKET
from dsctl_core.cache.manifest import Entry, Recipe, manifest_texts, write_manifest
from dsctl_core.cache.reader import CachedDataset
from dsctl_core.cache.shards import FOLDER, PARTS_IN_A_SHARD, make_part, write_shard
from dsctl_core.files.digest import digest
from dsctl_core.training.loop.loop import launch_training_task
from dsctl_core.training.model.module import DiffusionTrainingModule, TrainedComponent
from dsctl_core.training.output.logger import ModelLogger

REPOSITORY = Path(__file__).resolve().parents[1]
LATENTS, TOKENS, WIDTH = (1, 16, 1, 166, 166), 256, 3584  # of a picture of 1328x1328, and of a prompt of Qwen-Image
EPOCHS = 2


def write_cache(folder: Path, samples: int, share: float) -> int:
    """Write a cache of random entries; with `share` below 1, of so much of their bytes. Return its bytes."""
    (folder / FOLDER).mkdir(parents=True)
    names: dict[str, str] = {}
    generator = torch.Generator().manual_seed(0)
    tokens = max(int(TOKENS * share), 1)
    kinds = {"latents": (*LATENTS[:-1], max(int(LATENTS[-1] * share), 1)), "prompt": (1, tokens, WIDTH)}
    for kind, shape in kinds.items():
        for first in range(0, samples, PARTS_IN_A_SHARD):
            parts = {}
            for number in range(first, min(first + PARTS_IN_A_SHARD, samples)):
                values = {f"shared.{kind}": torch.randn(shape, generator=generator).bfloat16()}
                parts[digest([kind, number])] = make_part(values, torch.bfloat16)
            made = write_shard(folder, parts)
            names |= dict.fromkeys(parts, made.name)
    keys = [tuple(digest([kind, number]) for kind in kinds) for number in range(samples)]
    entries = [Entry(number, digest([*parts]), {}, parts) for number, parts in enumerate(keys)]
    sizes = {path.name: path.stat().st_size for path in (folder / FOLDER).iterdir()}
    recipe = Recipe("qwen-image", "sft", ("dit",), (), (), {}, "bfloat16", {}, (), {}, {})
    write_manifest(folder, *manifest_texts(recipe, entries, names, sizes, 0, []))
    return sum(sizes.values())


class Waiting(DiffusionTrainingModule):
    """One weight, and a step that takes `seconds` elsewhere."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.pipe: Any = nn.Module()
        self.pipe.dit = nn.Linear(1, 1)
        self.pipe.family, self.pipe.component = SimpleNamespace(name="none"), lambda name: self.pipe.dit
        self.pipe.parts = SimpleNamespace(denoisers=[SimpleNamespace(name="dit")])
        self.trained, self.seconds = [TrainedComponent("dit", lora=False)], seconds

    def forward(self, data: Any) -> torch.Tensor:
        """Wait, and return the loss."""
        time.sleep(self.seconds)
        loss: torch.Tensor = self.pipe.dit(torch.ones(1, 1)).square().mean()
        return loss


def steps_of(cache: str | Path, place: Path, seconds: float) -> list[float]:
    """Train without local copies, and return the seconds of each step."""
    from accelerate import Accelerator

    os.environ["XDG_CACHE_HOME"] = str(place / "user")
    samples = CachedDataset(cache)
    samples.check_at_start()  # as `dsctl train` does while the model loads
    module, logger = Waiting(seconds), ModelLogger(place / "run")
    launch_training_task(Accelerator(cpu=True), samples, module, logger, num_epochs=EPOCHS)
    lines = (place / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["seconds"] for line in lines]


def measure(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Return the mean seconds of a step of both sides, and how many times faster the disk is."""
    size = write_cache(place / "store" / "cache", options.samples, options.share)
    command = [sys.executable, "-m", "benchmarks.slow_store", str(place / "store")]
    command += ["--rate", str(options.gigabits * 1e9 / 8), "--latency", str(options.latency)]
    keys = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_DEFAULT_REGION": "us-east-1"}
    sides: dict[str, list[list[float]]] = {"disk": [], "address": []}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as server:
        try:
            assert server.stdout is not None
            os.environ.update(keys, AWS_ENDPOINT_URL=server.stdout.readline().strip())
            for number in range(options.rounds):
                for side, where in (("disk", place / "store" / "cache"), ("address", f"s3://{BUCKET}/cache")):
                    sides[side].append(steps_of(where, place / f"{side}{number}", options.step))
        finally:
            server.kill()
    half = options.samples
    means = {
        side: {
            "first_step": fmean(steps[0] for steps in rounds),
            "first_epoch": fmean(seconds for steps in rounds for seconds in steps[:half]),
            "first_epoch_without_first_step": fmean(seconds for steps in rounds for seconds in steps[1:half]),
            "second_epoch": fmean(seconds for steps in rounds for seconds in steps[half:]),
        }
        for side, rounds in sides.items()
    }
    return {
        "cache_bytes": size,
        "bytes_a_second": size / options.samples / options.step,
        "seconds_a_step": means,
        "ratio": {name: round(means["disk"][name] / means["address"][name], 4) for name in means["disk"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=128, help="entries of the cache, and steps of an epoch")
    parser.add_argument("--step", type=float, default=1.0, help="seconds that a step computes")
    parser.add_argument("--gigabits", type=float, default=1.0, help="of the line, a second")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before the first byte of an answer")
    parser.add_argument("--share", type=float, default=1.0, help="of the bytes of an entry, for a short run")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build" / "benchmark_remote_step.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "settings": {name: value for name, value in vars(options).items() if name != "output"},
        **found,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(
        f"a cache of {found['cache_bytes'] / 1e6:,.0f} MB, {found['bytes_a_second'] / 1e6:.1f} MB a second asked for, "
        f"over {options.gigabits:g} Gbit/s"
    )
    for name, ratio in found["ratio"].items():
        disk, address = (found["seconds_a_step"][side][name] for side in ("disk", "address"))
        title = name.replace("_", " ")
        print(f"{title}: {disk:.4f} s a step from the disk, {address:.4f} s from the address; ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
