"""Checks, in two processes, what a divided model is and how it becomes whole: fails where something is not so."""

import gc
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import accelerate
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.losses.direct_distill import refuse_uneven_passes
from dsctl_core.options import TrainOptions
from dsctl_core.progress import NoProgress
from dsctl_core.training.distributed import fsdp as sharded
from dsctl_core.training.plan.module import build_module
from dsctl_core.training.plan.plan import plan_training
from dsctl_core.training.state.pieces import read_pieces, taken, write_pieces
from dsctl_core.training.state.values import read_values, write_values
from dsctl_core.training.state.writing import own_group
from tests.dsctl_core.training.runs_in_processes import one_group

STATUS = Path("/proc/self/status")


class Linear(nn.Linear):
    """Remembers the dtype of the weight that it computed with."""

    used: torch.dtype | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.used = self.weight.dtype
        return super().forward(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = Linear(3, 3).to(torch.bfloat16).requires_grad_(False)
        self.trained = Linear(3, 3)  # 3 rows over 2 processes: unequal parts

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
            side_networks=(),
        )
        self.trained = [SimpleNamespace(name="dit")]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dit(self.encoder(x)).square().mean()


class Exact(nn.Module):
    """A block with a module, and a table, that stay in float32."""

    _keep_in_fp32_modules = ("kept", "table")
    _no_split_modules = ("Block",)

    def __init__(self) -> None:
        super().__init__()
        self.kept, self.inner = Linear(3, 3), Block()
        self.table = nn.Parameter(torch.full((2, 3), 1 + 2**-12), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.kept(x).float() + self.table[0])


def check_precision(accelerator: accelerate.Accelerator) -> None:
    """Compute in bfloat16 with shards, gradients and an optimizer in float32, and leave what is exact as it is."""
    torch.manual_seed(0)
    network, module = Exact(), Module()
    module.dit = network
    about = {"num_processes": 2, "device": accelerator.device, "mixed_precision": "bf16"}
    sharded.shard(SimpleNamespace(**about), module, torch.bfloat16)
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        loss = module(rows)
    loss.backward()
    inner = network.inner
    assert [each.used for each in (network.kept, inner.trained, inner.frozen)] == [torch.float32, *[torch.bfloat16] * 2]
    assert float(network.table[0, 0]) == 1 + 2**-12
    for name, parameter in named(module).items():
        assert parameter.dtype == parameter.grad.dtype == torch.float32, name
    exact = Module()
    torch.manual_seed(0)
    exact.dit = Exact()
    assert abs(float(exact(rows)) - float(loss)) < 0.02 * float(loss)


def memory(*kinds: str) -> list[int]:
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return [int(lines[kind].split()[0]) * 1024 for kind in kinds]


def check_loading(options: dict[str, object]) -> dict[str, int]:
    """Load a model to train the whole of it: no process may hold more than its half, or read more of the file."""
    plan = plan_training(TrainOptions.model_validate(options), NoProgress())
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, anonymous = memory("VmRSS", "RssAnon")
    module = build_module(plan, NoProgress())
    peak, now = memory("VmHWM", "RssAnon")
    dit = module.pipe.dit
    file = load_file(Path(str(options["model"])) / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(isinstance(each, DTensor) and each.dtype == torch.float32 for each in dit.parameters())
    for name in ("proj_out.weight", "transformer_blocks.0.attn.to_q.weight"):
        assert torch.equal(sharded.whole(dit.get_parameter(name)), file[name].float())
    return {"peak": peak - before, "kept": now - anonymous, "numbers": sum(each.numel() for each in dit.parameters())}


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
    one_group()
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

    # A state has the pieces of both processes, each written by its own. One process reads them whole.
    pieces: dict[str, torch.Tensor] = {}
    state = taken(several.state_dict(), pieces, "optimizer", keep=True, copy=True)
    group, written = own_group(accelerator), folder / "pieces"
    assert len(write_pieces(written, pieces, group)) == len(list(written.iterdir())) == 2
    write_values(folder / f"{rank}.safetensors", state)
    wholly = read_values(folder / f"{rank}.safetensors", read_pieces(written, "optimizer", None))
    assert wholly["param_groups"] == several.state_dict()["param_groups"]
    for number, values in one.state_dict()["state"].items():
        for key, value in values.items():
            assert torch.allclose(wholly["state"][number][key], value, atol=1e-6), key
    assert taken(several.state_dict(), {}, "optimizer", keep=False, copy=True)["state"][0]["step"] is None

    # And each process reads its own, from the pieces or from what is whole.
    parameters = list(named(module).values())
    again = read_values(folder / f"{rank}.safetensors", read_pieces(written, "optimizer", sharded.mesh_of(module)))
    for saved in (wholly, again):
        fresh = torch.optim.Adam(parameters, lr=0.5)
        fresh.load_state_dict({**saved, "state": sharded.divided_state(saved["state"], parameters)})
        for parameter in parameters:
            for key in ("exp_avg", "exp_avg_sq"):
                old, new = several.state[parameter][key], fresh.state[parameter][key]
                assert torch.equal(old.to_local(), new.to_local())
    for parameter in parameters:
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
    check_precision(accelerator)
    told = {"refused": refused, "uneven": uneven}
    if STATUS.is_file():
        AcceleratorState._reset_state(reset_partial_state=True)
        told["loaded"] = check_loading(json.loads((folder / "options.json").read_text()))
    (folder / f"{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
