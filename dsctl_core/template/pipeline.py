"""TemplatePipeline: run templates with a pipeline in inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.errors import UsageError
from dsctl_core.options.template import INPUTS
from dsctl_core.pipeline import BasePipeline
from dsctl_core.readable import counted
from dsctl_core.template.contract import Contract, read_contract
from dsctl_core.template.model import MODEL_ID, Template, load_template
from dsctl_core.template.outputs import join_outputs
from dsctl_core.template.source import folder_of
from dsctl_core.template.trust import Trust
from dsctl_core.template.units import GivenTemplateOutputs

TemplateInputs = Sequence[Mapping[str, Any]]


class TemplatePipeline:
    """Run templates, and a pipeline with their outputs.

    With `lazy_loading` only one template is in memory: each is loaded when it is needed.
    """

    def __init__(
        self,
        contracts: Sequence[Contract],
        checkpoints: Sequence[Path | None],
        *,
        torch_dtype: torch.dtype,
        device: torch.device,
        lazy_loading: bool,
    ) -> None:
        self.contracts, self.checkpoints = tuple(contracts), tuple(checkpoints)
        self.torch_dtype, self.device, self.lazy_loading = torch_dtype, device, lazy_loading
        self.loaded: dict[int, Template] = {}
        if not lazy_loading:
            for number in range(len(self.contracts)):
                self._template(number)

    @classmethod
    def from_pretrained(
        cls,
        torch_dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
        model_configs: Sequence[ModelConfig] = (),
        lazy_loading: bool = False,
        *,
        trust_template: bool = False,
        checkpoints: Sequence[str | Path | None] | None = None,
    ) -> TemplatePipeline:
        """Load templates from folders or from repositories on a hub.

        Args:
            torch_dtype: The precision of the templates.
            device: The device of the templates; None: cuda if there is a GPU, else cpu.
            model_configs: The templates.
            lazy_loading: Whether each template is loaded when it is needed, and then replaced by the next.
            trust_template: Whether their code may run even if it was not trusted on this machine before.
            checkpoints: A file of trained weights for each template, or None for the weights of the template.
        """
        if not model_configs:
            raise UsageError("there is no template", hint="add at least one to model_configs")
        files = [None if each is None else Path(each) for each in checkpoints or [None] * len(model_configs)]
        if len(files) != len(model_configs):
            raise UsageError(
                f"there are {counted(len(files), 'checkpoint')} for {counted(len(model_configs), 'template')}",
                hint="give one checkpoint or None for each template",
            )
        trust = Trust(trust_template, option="--trust-template, or trust_template=True in Python")
        contracts = [read_contract(folder_of(config), trust) for config in model_configs]
        target = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
        return cls(contracts, files, torch_dtype=torch_dtype, device=target, lazy_loading=lazy_loading)

    @torch.no_grad()
    def __call__(
        self,
        pipe: BasePipeline,
        *,
        template_inputs: TemplateInputs = (),
        negative_template_inputs: TemplateInputs = (),
        **inputs: Any,
    ) -> Any:
        """Return the result of `pipe(**inputs)`, steered by the templates.

        An entry of `template_inputs` is a dict of the inputs of one template. If there are several templates, its
        `model_id` is the number of the template, from 0. Their outputs are combined: tokens are concatenated, LoRAs are
        summed. They apply to this call only. `negative_template_inputs` are for the negative side of classifier-free
        guidance.
        """
        posi, nega = (self.outputs(pipe, entries) for entries in (template_inputs, negative_template_inputs))
        with pipe.more_units([GivenTemplateOutputs(pipe, posi, nega)]):
            return pipe(**inputs)

    def refuse_unread(self, template_inputs: TemplateInputs, flag: str) -> None:
        """Raise a UsageError for an input, given by the option `flag`, that its template does not read."""
        for each in template_inputs:
            self._template(self._number(each)).refuse_unread(each, flag)

    @torch.no_grad()
    def outputs(self, pipe: BasePipeline, template_inputs: TemplateInputs) -> dict[str, Any]:
        """Run the templates and return their combined outputs."""
        return join_outputs(pipe, [self._run(pipe, each) for each in template_inputs])

    def _run(self, pipe: BasePipeline, inputs: Mapping[str, Any]) -> tuple[Contract, dict[str, Any]]:
        template = self._template(self._number(inputs))
        return template.contract, template.forward(pipe, template.process_inputs(pipe, inputs))

    def _number(self, inputs: Mapping[str, Any]) -> int:
        if not isinstance(inputs, Mapping):
            raise UsageError(
                f"an entry of {INPUTS} is {inputs!r}, not a dict", hint='use a list of dicts, such as [{"scale": 0.8}]'
            )
        count = len(self.contracts)
        number = inputs.get(MODEL_ID, 0 if count == 1 else None)
        if number is None:
            raise UsageError(
                f"an entry of {INPUTS} has no {MODEL_ID}, but there are {count} templates",
                hint=f'add "{MODEL_ID}": 0 for the first one',
            )
        if not isinstance(number, int) or not 0 <= number < count:
            raise UsageError(f"{MODEL_ID} {number!r} is not one of the {count} templates", hint=f"use 0 to {count - 1}")
        return number

    def _template(self, number: int) -> Template:
        if number not in self.loaded:
            if self.lazy_loading:
                self.loaded.clear()
            template = load_template(self.contracts[number], checkpoint=self.checkpoints[number])
            template.model.to(self.device, self.torch_dtype)
            self.loaded[number] = template
        return self.loaded[number]
