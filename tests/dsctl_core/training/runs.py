"""Short runs of the loop on a regression with dropout, for the tests of state and resuming."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import accelerate
import torch
from torch import nn

from dsctl_core import ModelLogger, launch_training_task
from tests.dsctl_core.training.loop.test_loop import ROWS, Module

REPOSITORY = Path(__file__).parents[3]
FIELDS_OF_TIME = ("seconds", "samples_per_second", "peak_memory_bytes")


class Drawing(Module):
    """A regression that draws dropout from torch's global generator, as LoRA dropout does."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.25)

    def forward(self, data):
        rows = data if isinstance(data, list) else [data]
        x = self.dropout(torch.tensor([row["x"] for row in rows]))
        noise = [torch.randn(1, generator=torch.Generator().manual_seed(row["seed"])) for row in rows]
        return (self.pipe.dit(x) - torch.stack(noise)).square().mean()


def warm_up(optimizer, total):
    """Raise the rate over ten updates, then let it fall."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: min((done + 1) / 10, 1) * 0.97**done)


def train(folder, accumulate=1, rows=ROWS, module=None, **kwargs):
    """Train in `folder` and return the module, the summary and what is left of metrics.jsonl."""
    module = module or Drawing()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    settings = {"learning_rate": 1e-2, "save_steps": 5, "lr_scheduler": warm_up, **kwargs}
    if "optimizer" in kwargs:
        settings.pop("learning_rate")
    summary = launch_training_task(accelerator, rows, module, ModelLogger(folder), **settings)
    return module, summary, metrics(folder)


def metrics(folder):
    """Return the lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in FIELDS_OF_TIME} for line in lines]


def start(python, *words, processes=1, program="tests.dsctl_core.training.resuming"):
    """Start a run of `program` in processes of its own, each a `python`."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    return subprocess.Popen(
        [python, *(launch if processes > 1 else []), "-m", program, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process):
    """Wait for a run that should end well and return what it printed."""
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out
