"""Collect and restore the state that training changes: weights, optimizer, schedule, loss scaling.

Weights that are sharded stay so: a state has their pieces. Every process must call every function here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from dsctl_core.errors import DsctlError
from dsctl_core.training.distributed.fsdp import divided_state, like

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from dsctl_core.training.callbacks.base import TrainingRun

OTHER = "resume with what the run was begun with, or begin anew in another --output-path"


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained weights by name, and the buffers of their modules.

    A weight that two modules share, such as an embedding and a head, is returned once.
    """
    found: dict[str, Tensor] = {}
    shared: set[int] = set()
    for prefix, module in model.named_modules():
        own = dict(module.named_parameters(prefix, recurse=False))
        trained = {name: each for name, each in own.items() if each.requires_grad}
        found.update((name, each) for name, each in trained.items() if id(each) not in shared)
        shared.update(map(id, trained.values()))
        if trained:
            lost = {f"{prefix}.{name}" if prefix else name for name in module._non_persistent_buffers_set}
            found.update((n, b) for n, b in module.named_buffers(prefix, recurse=False) if n not in lost)
    return found


def weights_of(run: TrainingRun) -> dict[str, Tensor]:
    """Return the trained weights in their own dtype, sharded as they are."""
    return {name: tensor.detach() for name, tensor in trained_tensors(run.model).items()}


def load_weights(run: TrainingRun, saved: Mapping[str, Tensor]) -> None:
    """Restore weights; raise a DsctlError for names, shapes or dtypes that differ from those of the run."""
    own = trained_tensors(run.model)
    for name in own.keys() ^ saved.keys():
        has, lacks = ("this run", "the state") if name in own else ("the state", "this run")
        raise DsctlError(f"{has} trains {name}, {lacks} does not", hint=OTHER)
    for name, tensor in own.items():
        old, new = ((tuple(each.shape), each.dtype) for each in (saved[name], tensor))
        if old != new:
            raise DsctlError(f"{name} is {_form(*old)} in the state, but {_form(*new)} in this run", hint=OTHER)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(like(saved[name], tensor))


def _form(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{'x'.join(map(str, shape)) or 'a number'} {str(dtype).removeprefix('torch.')}"


def settings_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the settings of each parameter group of the optimizer, such as its learning rate."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def optimizer_of(run: TrainingRun, initial: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the state of optimizer, schedule and loss scaling; `initial` are the settings before the first step."""
    state = run.optimizer.state_dict()
    scaler = run.accelerator.scaler
    return {
        "class": class_of(run.optimizer),
        "state": state["state"],
        "groups": state["param_groups"],
        "initial": initial,
        "schedule": None if run.schedule is None else run.schedule.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
    }


def class_of(optimizer: Optimizer) -> str:
    """Return the name of an optimizer's class, without accelerate's wrapper."""
    kind = type(getattr(optimizer, "optimizer", optimizer))
    return f"{kind.__module__}.{kind.__qualname__}"


def load_optimizer(run: TrainingRun, saved: dict[str, Any], initial: list[dict[str, Any]]) -> None:
    """Restore the state of optimizer, schedule and loss scaling; `initial` are this run's own settings.

    A setting that differs between this run and the saved one keeps this run's value; so does the learning rate.
    """
    name = class_of(run.optimizer)
    if saved["class"] != name:
        raise DsctlError(f"the state is of the optimizer {saved['class']}, but this run has {name}", hint=OTHER)
    if len(saved["initial"]) != len(initial):
        raise DsctlError(
            f"the optimizer has {len(saved['initial'])} groups of weights in the state, but {len(initial)} in this run",
            hint=OTHER,
        )
    groups = []
    for kept, before, now in zip(saved["groups"], saved["initial"], initial, strict=True):
        changed = {key: value for key, value in now.items() if key not in before or before[key] != value}
        groups.append({**kept, **changed, "lr": kept["lr"]})
    held = divided_state(saved["state"], [each for group in run.optimizer.param_groups for each in group["params"]])
    run.optimizer.load_state_dict({"state": held, "param_groups": groups})
    _keep_dtypes(run.optimizer, held)
    _load_schedule(run, saved["schedule"], saved["initial"], initial)
    if run.accelerator.scaler is not None and saved["scaler"]:
        run.accelerator.scaler.load_state_dict(saved["scaler"])


def _keep_dtypes(optimizer: Optimizer, saved: Mapping[int, Mapping[str, Any]]) -> None:
    """Undo torch's cast of a loaded state to the dtype of the weight, which may be smaller."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    for number, values in saved.items():
        own = optimizer.state[parameters[number]]
        for key, value in values.items():
            if isinstance(value, Tensor) and isinstance(own.get(key), Tensor) and own[key].dtype != value.dtype:
                own[key] = like(value, own[key])


def _load_schedule(
    run: TrainingRun,
    saved: dict[str, Any] | None,
    before: list[dict[str, Any]],
    now: list[dict[str, Any]],
) -> None:
    """Restore the schedule. A schedule that depends on the step alone recomputes the rate of the step."""
    schedule, groups = run.schedule, run.optimizer.param_groups
    if schedule is None:
        for group, own in zip(groups, now, strict=True):
            group["lr"] = own["lr"]
        return
    rates = list(schedule.base_lrs)
    if saved is None:
        schedule.last_epoch = run.step
    else:
        schedule.load_state_dict(saved)
        schedule.base_lrs = rates
    if isinstance(schedule, LambdaLR):
        for group, rate, factor in zip(groups, rates, schedule.lr_lambdas, strict=True):
            group["lr"] = rate * factor(schedule.last_epoch)
    else:
        for group, then, own in zip(groups, before, now, strict=True):
            group["lr"] *= own["lr"] / then["lr"] if then["lr"] != own["lr"] else 1.0
    schedule._last_lr = [group["lr"] for group in groups]
