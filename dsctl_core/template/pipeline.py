"""TemplatePipeline: templates beside a pipeline, for making pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.errors import UsageError
from dsctl_core.options.template import INPUTS
from dsctl_core.pipeline import BasePipeline
from dsctl_core.template.contract import Contract, read_contract
from dsctl_core.template.model import MODEL_ID, Template, load_template
from dsctl_core.template.outputs import join_outputs
from dsctl_core.template.source import folder_of
from dsctl_core.template.trust import Trust
from dsctl_core.template.units import GivenTemplateOutputs

Given = Sequence[Mapping[str, Any]]


class TemplatePipeline:
    """Runs templates, and a pipeline with what they make.

    With `lazy_loading` a template is loaded when it is its turn, and dropped for the next one.
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
        """Load the templates that `model_configs` name: folders, or repositories on a hub.

        Their code runs only if `trust_template`, or if it was agreed to before. `checkpoints` are files of trained
        weights, one for each template, or None for the template's own.
        """
        if not model_configs:
            raise UsageError("no template is given", hint="name at least one in model_configs")
        files = [None if each is None else Path(each) for each in checkpoints or [None] * len(model_configs)]
        if len(files) != len(model_configs):
            raise UsageError(
                f"{len(files)} checkpoints are given for {len(model_configs)} templates",
                hint="give one for each, or None",
            )
        trust = Trust(trust_template, how="--trust-template, or trust_template=True in Python")
        contracts = [read_contract(folder_of(config), trust) for config in model_configs]
        place = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
        return cls(contracts, files, torch_dtype=torch_dtype, device=place, lazy_loading=lazy_loading)

    @torch.no_grad()
    def __call__(
        self,
        pipe: BasePipeline,
        *,
        template_inputs: Given = (),
        negative_template_inputs: Given = (),
        **inputs: Any,
    ) -> Any:
        """Return what `pipe(**inputs)` makes, steered by the templates.

        Each of the inputs is a dict for one template; among several, its `model_id` says which, from 0. Templates
        that work together add their tokens one behind the other and their LoRAs to each other. What they make is in
        force for this call alone. `negative_template_inputs` are for the side that guidance leads away from.
        """
        posi, nega = (self.outputs(pipe, given) for given in (template_inputs, negative_template_inputs))
        with pipe.more_units([GivenTemplateOutputs(pipe, posi, nega)]):
            return pipe(**inputs)

    @torch.no_grad()
    def outputs(self, pipe: BasePipeline, given: Given) -> dict[str, Any]:
        """Return what the templates make of their inputs, as one."""
        return join_outputs(pipe, [self._run(pipe, each) for each in given])

    def _run(self, pipe: BasePipeline, inputs: Mapping[str, Any]) -> tuple[Contract, dict[str, Any]]:
        template = self._template(self._number(inputs))
        return template.contract, template.forward(pipe, template.process_inputs(pipe, inputs))

    def _number(self, inputs: Mapping[str, Any]) -> int:
        if not isinstance(inputs, Mapping):
            raise UsageError(f"{INPUTS} holds {inputs!r}", hint='give a list of dicts, such as [{"scale": 0.8}]')
        count = len(self.contracts)
        number = inputs.get(MODEL_ID, 0 if count == 1 else None)
        if number is None:
            raise UsageError(
                f"an entry of {INPUTS} does not say which of the {count} templates it is for",
                hint=f'add "{MODEL_ID}": 0 for the first one',
            )
        if not isinstance(number, int) or not 0 <= number < count:
            raise UsageError(f"{MODEL_ID} {number!r} is none of the {count} templates", hint=f"0 to {count - 1}")
        return number

    def _template(self, number: int) -> Template:
        if number not in self.loaded:
            if self.lazy_loading:
                self.loaded.clear()
            template = load_template(self.contracts[number], checkpoint=self.checkpoints[number])
            template.model.to(self.device, self.torch_dtype)
            self.loaded[number] = template
        return self.loaded[number]
