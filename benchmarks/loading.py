"""Measure what the check for values that are not finite adds to loading a component.

    python -m benchmarks.loading                  # prints the results and writes build/benchmark_loading.json
    python -m benchmarks.loading --layers 4 --rounds 3

The component is a random transformer of Qwen-Image's width, in bfloat16, on the disk; it is read from the page cache,
so that the share is the largest that there can be. The libraries map the file into memory and read a weight when it is
first used, so both sides copy all weights after loading, as moving them to a device does. Both sides take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel

from benchmarks.data import in_turns
from dsctl_core.checkpoint.finite import refuse_unusable_weights
from dsctl_core.checkpoint.identify import weight_files
from dsctl_core.checkpoint.load import load_component
from dsctl_core.families import load_family
from dsctl_core.files.safetensors import SETTLED

REPOSITORY = Path(__file__).resolve().parents[1]


def write_transformer(folder: Path, layers: int) -> int:
    """Write a random transformer with `layers` blocks of the published width; return its number of bytes."""
    torch.manual_seed(0)
    sizes = {**load_family("qwen-image").published["dit"], "num_layers": layers}
    QwenImageTransformer2DModel(**sizes).to(torch.bfloat16).save_pretrained(folder)
    return sum(file.stat().st_size for file in weight_files(folder))


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Return the median seconds of loading without the check, with it, and where it is remembered, and the shares."""
    component = load_family("qwen-image").component("dit")

    def used(model: torch.nn.Module) -> None:
        copies = [parameter.clone() for parameter in model.parameters()]
        assert copies

    def plain() -> None:
        used(load_component(component, folder, torch.bfloat16))

    def again() -> None:
        model = load_component(component, folder, torch.bfloat16)
        refuse_unusable_weights(model, weight_files(folder), folder)
        used(model)

    def first() -> None:
        shutil.rmtree(remembered, ignore_errors=True)
        again()

    remembered = folder / "user_cache"
    os.environ["XDG_CACHE_HOME"] = str(remembered)
    time.sleep(SETTLED)  # a file that has just been written is not remembered
    seconds = in_turns({"plain": plain, "first": first, "again": again}, rounds, time.perf_counter)
    found = {name: median(each) for name, each in seconds.items()}
    added = {f"added_{name}": found[name] / found["plain"] - 1 for name in ("first", "again")}
    return {**found, **added, "threads": torch.get_num_threads()}


def main(words: list[str] | None = None) -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=3, help="blocks of the transformer, 0.7 GB each")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build" / "benchmark_loading.json")
    settings = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="loading-") as name:
        size = write_transformer(Path(name), settings.layers)
        found = {"bytes": size, **measure(Path(name), settings.rounds)}
    print(
        f"loading {size / 1e9:.2f} GB: {found['plain']:.2f} s, with the check {found['first']:.2f} s "
        f"({found['added_first']:+.1%}), when it is remembered {found['again']:.2f} s ({found['added_again']:+.1%}), "
        f"{found['threads']} threads"
    )
    machine = {"python": platform.python_version(), "processor": platform.machine(), "torch": version("torch")}
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    settings.output.write_text(json.dumps({"machine": machine, **found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
