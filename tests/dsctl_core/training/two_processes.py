"""Trains the loop tests' regression in as many processes as it is started in, and writes what came of it."""

import json
import sys
from pathlib import Path

import accelerate
import torch

from dsctl_core import ModelLogger, launch_training_task
from tests.dsctl_core.training.loop.test_loop import ROWS, Module

BUCKETS = list("aababbab")


def main(folder: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    module = Module()
    launch_training_task(
        accelerator,
        ROWS,
        module,
        ModelLogger(folder),
        batch_size=2,
        buckets=BUCKETS,
        num_epochs=2,
        learning_rate=1e-2,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    rank = accelerator.process_index
    weight = module.pipe.dit.weight.flatten().tolist()
    (folder / f"process-{rank}.json").write_text(json.dumps({"seen": module.seen, "weight": weight}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
