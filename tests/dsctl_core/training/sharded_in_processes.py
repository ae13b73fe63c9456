"""Checks, in two processes, what a divided model is and how it becomes whole: fails where something is not so."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import accelerate
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.losses.direct_distill import refuse_uneven_passes
from dsctl_core.training.distributed import fsdp as sharded


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(3, 3).to(torch.bfloat16).requires_grad_(False)
        self.trained = nn.Linear(3, 3)  # 3 rows over 2 processes: unequal parts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.trained(self.frozen(x.to(torch.bfloat16)).float())


class Network(nn.Module):
    _no_split_modules = ("Block",)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.out = nn.Linear(3, 1, bias=False)  # one row: nothing of it in the second process

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.blocks(x))


class Module(nn.Module):
    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dit, self.encoder = Network().to(dtype=dtype), nn.Linear(3, 3).requires_grad_(False)
        self.pipe = SimpleNamespace(
            parts=SimpleNamespace(denoisers=[SimpleNamespace(name="dit")]),
            iteration_modules=lambda: {"dit": self.dit},
            component=lambda name: getattr(self, name),
        )
        self.trained = [SimpleNamespace(name="dit")]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dit(self.encoder(x)).square().mean()


def named(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: each for name, each in module.named_parameters() if each.requires_grad}


def train(
    accelerator: accelerate.Accelerator, module: nn.Module, rows: torch.Tensor, accumulate: int
) -> torch.optim.Adam:
    """Make two updates on `rows` in `accumulate` parts; return the optimizer."""
    parameters = list(named(module).values())
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    prepared, wrapped = (
        sharded.prepare(accelerator, module, optimizer, 1, 1.0) if sharded.divided(module) else (module, optimizer)
    )
    for _ in range(2):
        for number, part in enumerate(rows.chunk(accumulate)):
            if number + 1 < accumulate:
                with sharded.keeping_gradients(accelerator, prepared):
                    (prepared(part) / accumulate).backward()
            else:
                (prepared(part) / accumulate).backward()
        wrapped.step()
        wrapped.zero_grad()
    return optimizer


def main(folder: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    rank, rows = accelerator.process_index, torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    alone, module = Module(), Module()
    sharded.shard(accelerator, module)
    assert sharded.divided(module) == [module.dit]
    assert isinstance(module.dit, FSDPModule)
    assert all(isinstance(block, FSDPModule) for block in module.dit.blocks)
    assert all(isinstance(each, DTensor) for each in module.dit.parameters())
    assert {each.dtype for each in module.dit.parameters()} == {torch.float32, torch.bfloat16}
    assert not any(isinstance(each, DTensor) for each in module.encoder.parameters())

    one = train(accelerator, alone, rows, 1)
    several = train(accelerator, module, rows[2 * rank : 2 * rank + 2], 2)
    for name, parameter in named(module).items():
        assert torch.allclose(sharded.whole(parameter), named(alone)[name], atol=1e-6), name

    # Together the pieces are what one process has; only those who ask keep them.
    state = sharded.whole_state(several.state_dict())
    for number, values in one.state_dict()["state"].items():
        for key, value in values.items():
            assert torch.allclose(state["state"][number][key], value, atol=1e-6), key
    dropped = sharded.whole_state(several.state_dict(), keep=False)
    assert dropped["state"][0]["exp_avg"] is None
    assert dropped["param_groups"] == state["param_groups"]

    # And divided again they are the pieces.
    fresh = torch.optim.Adam(list(named(module).values()), lr=0.5)
    fresh.load_state_dict({**state, "state": sharded.divided_state(state["state"], list(named(module).values()))})
    for parameter in named(module).values():
        for key in ("exp_avg", "exp_avg_sq"):
            old, new = several.state[parameter][key], fresh.state[parameter][key]
            assert torch.equal(old.to_local(), new.to_local())
        full = sharded.whole(parameter.detach())
        assert torch.equal(sharded.like(full, parameter).to_local(), parameter.to_local())

    # Whole weights are there for a while, in the process that writes, and the pieces are back after it.
    before = dict(named(module).items())
    with sharded.whole_weights(accelerator, module):
        told = {name: (type(each) is nn.Parameter, each.shape) for name, each in named(module).items()}
        written = {name: each.detach().clone() for name, each in named(module).items()} if rank == 0 else {}
    assert all(parameter is before[name] for name, parameter in named(module).items())
    assert all(whole for whole, _ in told.values()) == (rank == 0)
    if rank == 0:
        for name, value in written.items():
            assert torch.allclose(value, named(alone)[name], atol=1e-6), name

    norm = torch.nn.utils.get_total_norm([p.detach() for p in named(module).values()])
    length = float(sharded.gradient_norm(norm))
    assert abs(length - float(torch.nn.utils.get_total_norm([p.detach() for p in named(alone).values()]))) < 1e-5
    assert sharded.gradient_norm(None) is None

    try:
        sharded.shard(accelerator, Module(torch.float8_e4m3fn))
    except UsageError as error:
        refused = error.problem
    # A loss that runs the model several times says so where the processes would wait for one another for ever.
    refuse_uneven_passes(alone.pipe, rank)
    refuse_uneven_passes(module.pipe, 4)
    try:
        refuse_uneven_passes(module.pipe, 4 + rank)
    except DsctlError as error:
        uneven = error.problem
    (folder / f"{rank}.json").write_text(json.dumps({"refused": refused, "uneven": uneven}))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
