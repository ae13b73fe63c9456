"""Run a template once, and say what it takes, what it returns and what can be trained of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsctl_core.errors import DsctlError
from dsctl_core.families.resolve import resolve_model
from dsctl_core.pipeline import BasePipeline
from dsctl_core.template.card import REQUIRED
from dsctl_core.template.model import RESERVED, Template, tensors_in
from dsctl_core.template.outputs import join_outputs
from dsctl_core.template.units import GivenTemplateOutputs

SIDE = 2  # of the picture that is drawn to try it, in the family's smallest steps


def open_model(name: str) -> BasePipeline:
    """Load a preset or a model folder in float32 on the CPU."""
    return resolve_model(name).load_pipeline(torch_dtype=torch.float32, device="cpu")


def describe(template: Template, pipe: BasePipeline, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Run both halves of `template` on `inputs`, hand what they make to the model, and return the facts.

    What gets a gradient is found by a backward pass through `forward`, with all that the template has trainable.
    """
    state = template.process_inputs(pipe, inputs)
    model = template.model
    parameters = dict(model.named_parameters())
    model.requires_grad_(True)
    try:
        with torch.enable_grad():
            outputs = template.forward(pipe, state)
        reached = _reached(parameters, outputs)
    finally:
        model.requires_grad_(False)
    settled = {name: _detached(value) for name, value in outputs.items()}
    changed = _changes_the_picture(pipe, template, settled)
    return {
        "sha256": template.contract.digest,
        "class": template.contract.model.__name__,
        "inputs": input_names(template),
        "data_processor": None if template.processor is None else type(template.processor).__name__,
        "weights": [file.name for file in template.contract.weights],
        "parameters": sum(each.numel() for each in parameters.values()),
        "parts": {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()},
        "process_inputs": described(state),
        "forward": described(settled),
        "gradient": [name for name in parameters if name in reached],
        "no_gradient": [name for name in parameters if name not in reached],
        "changes_the_picture": changed,
    }


def input_names(template: Template) -> dict[str, str]:
    """Return the inputs that process_inputs names, each with its default, or "required" where it has none."""
    found = inspect.signature(template.contract.model.process_inputs).parameters.values()  # type: ignore[attr-defined]
    named = [each for each in found if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    return {
        each.name: REQUIRED if each.default is each.empty else repr(each.default)
        for each in named
        if each.name not in ("self", *RESERVED)
    }


def described(value: Any, name: str = "") -> dict[str, str]:
    """Return each tensor of a nest by its place in it, as its shape and type; anything else as its value."""
    if isinstance(value, Tensor):
        return {name: f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"}
    if isinstance(value, Mapping):
        entries = [(f"{name}.{key}" if name else str(key), each) for key, each in value.items()]
    elif isinstance(value, tuple | list) and tensors_in(value):
        entries = [(f"{name}[{number}]", each) for number, each in enumerate(value)]
    else:
        return {name: repr(value)}
    return {key: text for place, each in entries for key, text in described(each, place).items()}


def _reached(parameters: Mapping[str, Tensor], outputs: Mapping[str, Any]) -> set[str]:
    """Return the names of the parameters from which a gradient path leads to `outputs`."""
    ends = [tensor for tensor in tensors_in(outputs) if tensor.requires_grad]
    if not ends or not parameters:
        return set()
    total = torch.stack([end.float().sum() for end in ends]).sum()
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {name for name, each in zip(parameters, gradients, strict=True) if each is not None}


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return {name: _detached(each) for name, each in value.items()}
    return type(value)(_detached(each) for each in value) if isinstance(value, list | tuple) else value


@torch.no_grad()
def _changes_the_picture(pipe: BasePipeline, template: Template, outputs: Mapping[str, Any]) -> bool:
    """Draw a small picture in one step with the template's outputs and without; return whether they differ."""
    side = SIDE * pipe.parts.division_factor
    settings: dict[str, Any] = {"prompt": "a cat", "seed": 0, "height": side, "width": side}
    settings |= {"num_inference_steps": 1, "cfg_scale": 1.0}
    made = join_outputs(pipe, [(template.contract, outputs)])
    draw: Any = pipe
    plain = draw(**settings)
    with pipe.more_units([GivenTemplateOutputs(pipe, made, {})]):
        steered = draw(**settings)
    if not made:
        raise DsctlError(f"{template.contract.code}: forward returns nothing", hint='return {"kv_cache": ...}')
    return bool(plain.tobytes() != steered.tobytes())
