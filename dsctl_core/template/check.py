"""Run a template once and report its inputs, outputs and trainable parameters."""

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

SIDE = 2  # side of the test image, in multiples of the family's division factor


def open_model(name: str) -> BasePipeline:
    """Load a preset or a model folder in float32 on the CPU."""
    return resolve_model(name).load_pipeline(torch_dtype=torch.float32, device="cpu")


def describe(template: Template, pipe: BasePipeline, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Run `process_inputs` and `forward` of `template` on `inputs`, generate an image with the result, and report.

    The parameters with a gradient are found by a backward pass through `forward` with all parameters trainable.
    """
    state = template.process_inputs(pipe, inputs)
    model = template.model
    parameters = dict(model.named_parameters())
    model.requires_grad_(True)
    try:
        with torch.enable_grad():
            outputs = template.forward(pipe, state)
        with_gradient = _parameters_with_gradient(parameters, outputs)
    finally:
        model.requires_grad_(False)
    detached = {name: _detached(value) for name, value in outputs.items()}
    changes_image = _changes_the_image(pipe, template, detached)
    return {
        "sha256": template.contract.digest,
        "class": template.contract.model.__name__,
        "inputs": input_names(template),
        "data_processor": None if template.processor is None else type(template.processor).__name__,
        "weights": [file.name for file in template.contract.weights],
        "parameters": sum(each.numel() for each in parameters.values()),
        "parts": {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()},
        "process_inputs": describe_values(state),
        "forward": describe_values(detached),
        "gradient": [name for name in parameters if name in with_gradient],
        "no_gradient": [name for name in parameters if name not in with_gradient],
        "changes_the_picture": changes_image,
    }


def input_names(template: Template) -> dict[str, str]:
    """Return the named parameters of process_inputs with the repr of their defaults, or `REQUIRED` without one."""
    parameters = inspect.signature(template.contract.model.process_inputs).parameters.values()  # type: ignore[attr-defined]
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    return {
        each.name: REQUIRED if each.default is each.empty else repr(each.default)
        for each in named
        if each.name not in ("self", *RESERVED)
    }


def describe_values(value: Any, name: str = "") -> dict[str, str]:
    """Describe a nested value: shape and dtype of each tensor, repr of other values, by paths such as "kv.block[0]"."""
    if isinstance(value, Tensor):
        return {name: f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"}
    if isinstance(value, Mapping):
        entries = [(f"{name}.{key}" if name else str(key), each) for key, each in value.items()]
    elif isinstance(value, tuple | list) and tensors_in(value):
        entries = [(f"{name}[{number}]", each) for number, each in enumerate(value)]
    else:
        return {name: repr(value)}
    return {key: text for path, each in entries for key, text in describe_values(each, path).items()}


def _parameters_with_gradient(parameters: Mapping[str, Tensor], outputs: Mapping[str, Any]) -> set[str]:
    """Return the names of the parameters that `outputs` depend on."""
    differentiable = [tensor for tensor in tensors_in(outputs) if tensor.requires_grad]
    if not differentiable or not parameters:
        return set()
    total = torch.stack([tensor.float().sum() for tensor in differentiable]).sum()
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {name for name, each in zip(parameters, gradients, strict=True) if each is not None}


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return {name: _detached(each) for name, each in value.items()}
    return type(value)(_detached(each) for each in value) if isinstance(value, list | tuple) else value


@torch.no_grad()
def _changes_the_image(pipe: BasePipeline, template: Template, outputs: Mapping[str, Any]) -> bool:
    """Generate a small image in one step with the outputs of the template and without; return whether they differ."""
    side = SIDE * pipe.parts.division_factor
    settings: dict[str, Any] = {"prompt": "a cat", "seed": 0, "height": side, "width": side}
    settings |= {"num_inference_steps": 1, "cfg_scale": 1.0}
    joined = join_outputs(pipe, [(template.contract, outputs)])
    generate: Any = pipe
    plain = generate(**settings)
    with pipe.more_units([GivenTemplateOutputs(pipe, joined, {})]):
        steered = generate(**settings)
    if not joined:
        raise DsctlError(f"{template.contract.code}: forward returns nothing", hint='return {"kv_cache": ...}')
    return bool(plain.tobytes() != steered.tobytes())
