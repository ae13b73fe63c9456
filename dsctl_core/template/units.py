"""The units of a template: its first half, which runs once for a sample, its second half, and given outputs."""

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

STATE = "template_state"  # what process_inputs returned: for each sample a list, an entry for each of its inputs


def template_units(template: Template, pipe: BasePipeline, *, required: bool) -> tuple[PipelineUnit, ...]:
    """Return the units that train `template` in `pipe`; when `required`, every row must have inputs for it."""
    names = [name for name in pipe.component_names if name != MODEL]
    first, second = components_used(template.contract.source, names, template.contract.model.__name__)
    return ProcessTemplateInputs(template, first, required), RunTemplate(template, second, pipe)


class ProcessTemplateInputs(PipelineUnit):
    """Run the data processor and `process_inputs` on what each row has for the template."""

    output_params = (STATE,)
    frozen_use = (MODEL,)

    def __init__(self, template: Template, components: Sequence[str], required: bool) -> None:
        super().__init__()
        self.template, self.required_in_rows = template, required
        self.onload_model_names = (*components, MODEL)

    def process(self, pipe: BasePipeline, template_inputs: list[Any] | None = None) -> Inputs:
        """Return `template_state`, or None where there are no inputs: then no template runs."""
        if template_inputs is None:
            return {STATE: None}
        pipe.load_models_to_device(self.onload_model_names)
        return {STATE: [[self._state(pipe, each) for each in self._listed(own)] for own in template_inputs]}

    def _state(self, pipe: BasePipeline, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return self.template.process_inputs(pipe, self.template.annotate(inputs))

    def _listed(self, own: Any) -> list[Mapping[str, Any]]:
        """Return the inputs of a row: one dict, or a list of several that are to work together."""
        if own is None and not self.required_in_rows:
            return [{}]
        listed = own if isinstance(own, list) else [own]
        if not listed or not all(isinstance(each, Mapping) for each in listed):
            raise DsctlError(
                f"its {INPUTS} are {own!r}, which is no object of named values",
                hint=f'write "{INPUTS}": {{"scale": 0.5}}, in a json or jsonl table',
            )
        for each in listed:
            if each.get("model_id", 0) != 0:
                raise DsctlError(
                    f"its {INPUTS} are for the template {each['model_id']}, but one template is trained at a time",
                    hint="leave model_id out",
                )
        return listed


class RunTemplate(PipelineUnit):
    """Run `forward` on what `process_inputs` returned, at every step, and hand what it makes to the model."""

    take_over = True
    draws_each_step = True  # it may, and what is trained is in it
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
        """Add what the template makes to the prompt's side."""
        states = shared.get(STATE)
        if states is None:
            return shared, posi, nega
        flags = {name: bool(shared.get(name, False)) for name in CHECKPOINTING}
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in self.template.model.parameters())
        samples = []
        for own in states:
            made = [self.template.forward(pipe, placed(state, pipe.device), **flags) for state in own]
            if trained and not any(tensor.requires_grad for each in made for tensor in tensors_in(each)):
                raise DsctlError(
                    f"{self.template.contract.code}: nothing that forward returns depends on what is trained",
                    hint="compute it from the network's own weights, without torch.no_grad",
                )
            samples.append(join_outputs(pipe, [(self.template.contract, each) for each in made]))
        outputs = stack_outputs(samples)
        return shared, add_outputs(pipe, shared, posi, outputs), nega


class GivenTemplateOutputs(PipelineUnit):
    """Add what templates made already, for both sides of guidance, to what the other units prepare."""

    take_over = True

    def __init__(self, pipe: BasePipeline, posi: Mapping[str, Any], nega: Mapping[str, Any]) -> None:
        self.made = (posi, nega)
        masks = [name for name in prompt_outputs(pipe.units).values() if name is not None]
        self.output_params = (*model_inputs(pipe), *masks)
        super().__init__()

    def process(self, pipe: BasePipeline, shared: Inputs, posi: Inputs, nega: Inputs) -> tuple[Inputs, Inputs, Inputs]:
        """Add to each side what is for it."""
        for_posi, for_nega = (stack_outputs([each]) for each in self.made)
        posi = add_outputs(pipe, shared, posi, for_posi)
        if shared.get("cfg_scale", 1) != 1:
            nega = add_outputs(pipe, shared, nega, for_nega)
        elif for_nega:
            raise UsageError(
                f"negative_{INPUTS} have no effect at a cfg_scale of 1, which is no guidance",
                hint="give a larger cfg_scale, or leave them out",
            )
        return shared, posi, nega


def placed(value: Any, device: torch.device) -> Any:
    """Return a nest of values with its tensors on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: placed(entry, device) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(placed(entry, device) for entry in value)
    return value
