"""The units of a template: `process_inputs` once per sample, `forward` in every step, and outputs made in advance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.options.template import INPUTS, MODEL
from dsctl_core.template.model import CHECKPOINTING, Template, tensors_in
from dsctl_core.template.outputs import add_outputs, join_outputs, model_inputs, prompt_outputs, stack_outputs
from dsctl_core.template.uses import components_used
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline

STATE = "template_state"  # the results of process_inputs: for each sample a list with one entry per template input


def template_units(template: Template, pipe: BasePipeline, *, required: bool) -> tuple[PipelineUnit, ...]:
    """Return the units that train `template` in `pipe`. If `required`, every row must have inputs for it."""
    names = [name for name in pipe.component_names if name != MODEL]
    first, second = components_used(template.contract.source, names, template.contract.model.__name__)
    return ProcessTemplateInputs(template, first, required), RunTemplate(template, second, pipe)


class ProcessTemplateInputs(PipelineUnit):
    """Run the data processor and `process_inputs` on the template inputs of each row."""

    output_params = (STATE,)
    frozen_use = (MODEL,)

    def __init__(self, template: Template, components: Sequence[str], required: bool) -> None:
        super().__init__()
        self.template, self.required_in_rows = template, required
        self.onload_model_names = (*components, MODEL)

    def process(self, pipe: BasePipeline, template_inputs: list[Any] | None = None) -> Inputs:
        """Return `template_state`; it is None without inputs, and then the template does not run."""
        if template_inputs is None:
            return {STATE: None}
        pipe.load_models_to_device(self.onload_model_names)
        return {STATE: [[self._state(pipe, each) for each in self._as_list(row)] for row in template_inputs]}

    def _state(self, pipe: BasePipeline, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return self.template.process_inputs(pipe, self.template.annotate(inputs))

    def _as_list(self, value: Any) -> list[Mapping[str, Any]]:
        """Return the template inputs of a row as a list: `value` is one dict, or a list of dicts to combine."""
        if value is None and not self.required_in_rows:
            return [{}]
        entries = value if isinstance(value, list) else [value]
        if not entries or not all(isinstance(each, Mapping) for each in entries):
            raise DsctlError(
                f"its {INPUTS} are {value!r}, not an object of named values",
                hint=f'write "{INPUTS}": {{"scale": 0.5}}, in a json or jsonl table',
            )
        for each in entries:
            if each.get("model_id", 0) != 0:
                raise DsctlError(
                    f"its {INPUTS} are for the template {each['model_id']}, but one template is trained at a time",
                    hint="leave model_id out",
                )
        return entries


class RunTemplate(PipelineUnit):
    """Run `forward` on the state of `process_inputs` in every step, and add its outputs to the inputs of the model."""

    take_over = True
    draws_each_step = True  # `forward` may use random numbers, and it uses the trained weights
    version = 1

    def __init__(self, template: Template, components: Sequence[str], pipe: BasePipeline) -> None:
        self.template = template
        self.onload_model_names = (*components, MODEL)
        tokens = prompt_outputs(pipe.units)
        masks = tuple(name for name in tokens.values() if name is not None)
        self.reads = (STATE, *tokens, *masks, *CHECKPOINTING)
        self.output_params = (*model_inputs(pipe), *masks)
        super().__init__()

    def process(self, pipe: BasePipeline, shared: Inputs, posi: Inputs, nega: Inputs) -> tuple[Inputs, Inputs, Inputs]:
        """Add the outputs of the template to the positive side."""
        states = shared.get(STATE)
        if states is None:
            return shared, posi, nega
        flags = {name: bool(shared.get(name, False)) for name in CHECKPOINTING}
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in self.template.model.parameters())
        samples = []
        for entries in states:
            results = [self.template.forward(pipe, _to_device(state, pipe.device), **flags) for state in entries]
            if trained and not any(tensor.requires_grad for each in results for tensor in tensors_in(each)):
                raise DsctlError(
                    f"{self.template.contract.code}: no output of forward depends on the trained weights",
                    hint="compute the outputs from the weights of the network, without torch.no_grad",
                )
            samples.append(join_outputs(pipe, [(self.template.contract, each) for each in results]))
        outputs = stack_outputs(samples)
        return shared, add_outputs(pipe, shared, posi, outputs), nega


class GivenTemplateOutputs(PipelineUnit):
    """Add outputs of templates that were computed before to both sides of classifier-free guidance."""

    take_over = True

    def __init__(self, pipe: BasePipeline, posi: Mapping[str, Any], nega: Mapping[str, Any]) -> None:
        self.outputs = (posi, nega)
        masks = [name for name in prompt_outputs(pipe.units).values() if name is not None]
        self.output_params = (*model_inputs(pipe), *masks)
        super().__init__()

    def process(self, pipe: BasePipeline, shared: Inputs, posi: Inputs, nega: Inputs) -> tuple[Inputs, Inputs, Inputs]:
        """Add the outputs to their sides; raise `UsageError` for negative ones without guidance."""
        for_posi, for_nega = (stack_outputs([each]) for each in self.outputs)
        posi = add_outputs(pipe, shared, posi, for_posi)
        if shared.get("cfg_scale", 1) != 1:
            nega = add_outputs(pipe, shared, nega, for_nega)
        elif for_nega:
            raise UsageError(
                f"negative_{INPUTS} have no effect at a cfg_scale of 1, which turns guidance off",
                hint="use a larger cfg_scale, or leave them out",
            )
        return shared, posi, nega


def _to_device(value: Any, device: torch.device) -> Any:
    """Return a nested value with its tensors moved to `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _to_device(entry, device) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to_device(entry, device) for entry in value)
    return value
