"""Trains in each process that it is started in, with graphs that stay and that change, and writes what came of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import accelerate
import torch
from torch import nn

from dsctl_core import ModelLogger, launch_training_task
from dsctl_core.errors import UsageError
from tests.dsctl_core.training.loop.test_loop import ROWS, Module

STEPS = 4
# From the second step on, a graph that changes computes with another part than before.
CASES = {
    "searched": {"static": False, "changes": None},
    "static": {"static": True, "changes": None},
    "more": {"static": True, "changes": "more"},
    "fewer": {"static": True, "changes": "fewer"},
    "refused": {"static": None, "changes": None},
}


class Parts(Module):
    """Regression with a part that no step computes with, unless the graph changes."""

    def __init__(self, static: bool, changes: str | None) -> None:
        super().__init__()
        self.pipe.dit = nn.ModuleDict({"used": nn.Linear(3, 1), "bias": nn.Linear(1, 1), "unused": nn.Linear(1, 1)})
        for number, parameter in enumerate(self.pipe.dit.parameters()):
            nn.init.constant_(parameter, 0.1 * (number + 1))
        self.static_graph, self.changes, self.calls = static, changes, 0

    def forward(self, data):
        self.calls += 1
        late = self.calls > 4  # two micro-batches of a step are before it, and two of the next
        dit, found = self.pipe.dit, self.pipe.dit["used"](torch.tensor([row["x"] for row in data]))
        if not (late and self.changes == "fewer"):
            found = dit["bias"](found)
        if late and self.changes == "more":
            found = dit["unused"](found)
        return found.square().mean()


def main(folder: Path) -> None:
    found = {}
    for name, case in CASES.items():
        search = accelerate.DistributedDataParallelKwargs(find_unused_parameters=case["static"] is not None)
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2, kwargs_handlers=[search])
        module = Parts(bool(case["static"]), case["changes"])
        settings = {"batch_size": 2, "max_steps": STEPS, "optimizer": lambda own: torch.optim.SGD(own, lr=0.01)}
        try:
            launch_training_task(accelerator, ROWS * 2, module, ModelLogger(folder / name), **settings)
            found[name] = [each.tolist() for each in module.pipe.dit.parameters()]
        except UsageError as error:
            found[name] = [error.problem, error.hint, module.calls]
        rank = accelerator.process_index
        accelerate.state.AcceleratorState._reset_state()
    (folder / f"process-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
