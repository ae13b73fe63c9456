"""The units of a family as a graph: what runs once, what at every step, and what is kept in between."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from dsctl_core.family import Family
from dsctl_core.losses import Loss, find_loss
from dsctl_core.stages.split import PER_STEP_INPUTS, Stages, plan_stages, read_by_loss
from dsctl_core.training.model.open import empty_pipeline_of_family
from dsctl_core.units import PipelineUnit


def describe_stages(family: Family, trainable: Sequence[str], task: str = "sft") -> dict[str, Any]:
    """Return the two stages of training `trainable`; no weights are needed for it."""
    for name in trainable:
        family.component(name.split(".")[0])
    pipe = empty_pipeline_of_family(family, torch.float32, "cpu")
    loss = find_loss(task)
    stages = plan_stages(pipe, loss, trainable)
    made = {name for unit in pipe.units for name in unit.output_params}
    return {
        "task": task,
        "trainable": list(trainable),
        "once": [_described(unit) for unit in stages.split.once],
        "every_step": [_described(unit) for unit in stages.split.every_step],
        "model_fn": {"components": list(pipe.in_iteration_models), "reads": sorted(read_by_loss(pipe, loss) & made)},
        "new_at_every_step": [name for name in PER_STEP_INPUTS if name not in loss.requires],
        "kept": sorted(
            {name for group in stages.groups for name in group.keeps}
            | _read_from_rows(stages, made)
            | _read_by_loss(loss, made)
        ),
        "first_components": list(stages.first_components),
        "second_components": list(stages.second_components),
    }


def _described(unit: PipelineUnit) -> dict[str, Any]:
    return {
        "unit": type(unit).__name__,
        "reads": list(unit.input_params),
        "writes": list(unit.output_params),
        "components": list(unit.onload_model_names),
    }


def _read_from_rows(stages: Stages, made: set[str]) -> set[str]:
    """Return what units of every step cannot do without and no unit makes: it comes from the row itself."""
    required = {name for unit in stages.split.every_step for name in unit.required}
    return required - made - set(PER_STEP_INPUTS)


def _read_by_loss(loss: Loss, made: set[str]) -> set[str]:
    """Return what the loss needs and no unit makes."""
    return set(loss.requires) - made


def drawn(stages: dict[str, Any]) -> list[str]:
    """Return the drawing of what `describe_stages` returned, as lines of text."""
    lines = [f"Training {', '.join(stages['trainable'])} on the task {stages['task']}", ""]
    lines += ["once for each sample"]
    lines += _units(stages["once"]) or ["  nothing"]
    lines += ["", f"kept in the cache: {', '.join(stages['kept']) or 'nothing'}"]
    lines += [f"new at every step: {', '.join(stages['new_at_every_step'])}", "", "at every step"]
    lines += _units(stages["every_step"]) or ["  nothing"]
    model = stages["model_fn"]
    lines += [f"  model_fn and loss  [{', '.join(model['components'])}]", f"    reads   {_listed(model['reads'])}"]
    lines += ["", f"the first stage loads: {_listed(stages['first_components'])}"]
    return [*lines, f"the second stage loads: {_listed(stages['second_components'])}"]


def _units(units: Iterable[dict[str, Any]]) -> list[str]:
    lines = []
    for unit in units:
        lines.append(f"  {unit['unit']}" + (f"  [{', '.join(unit['components'])}]" if unit["components"] else ""))
        lines.append(f"    reads   {_listed(unit['reads'])}")
        lines.append(f"    writes  {_listed(unit['writes'])}")
    return lines


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"
