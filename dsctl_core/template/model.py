"""A template that is loaded: its network, and the two halves of what it does."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.errors import DsctlError, near_miss
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.template.contract import CONFIG, MODEL, PROCESSOR, WEIGHTS, Contract, read_contract
from dsctl_core.template.errors import blamed_on
from dsctl_core.template.source import folder_of
from dsctl_core.template.trust import Trust
from dsctl_core.template.used_parameters import parameters_used

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline

CHECKPOINTING = ("use_gradient_checkpointing", "use_gradient_checkpointing_offload")
RESERVED = ("pipe", *CHECKPOINTING)
START = 0  # seed of what a template draws when it is made
MODEL_ID = "model_id"  # says which template an input is for; no template gets to see it
TRAINED_PARTS = "trained_parts"  # in the header of a trained file: which modules of the template it has


@dataclass(frozen=True)
class Template:
    """A template's contract and its network, with the weights that it is to have."""

    contract: Contract
    model: nn.Module
    processor: Any = None  # an object of the contract's data processor, or None

    @property
    def name(self) -> str:
        """The folder, for messages."""
        return str(self.contract.folder)

    def annotate(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the data processor makes of what a row of the dataset has."""
        self._refuse_reserved("a row", inputs)
        values = {name: value for name, value in inputs.items() if name != MODEL_ID}
        if self.processor is None:
            return values
        with blamed_on(self.contract.code, f"the data processor failed on {_shown(values)}"):
            made = self.processor(**values)
        return self._mapping("the data processor", made)

    @torch.no_grad()
    def process_inputs(self, pipe: BasePipeline, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the first half, without gradients, makes of `inputs`.

        What is trained must have no part in it: it is computed once for a sample, and would go stale.
        """
        self._refuse_reserved("what a template is given", inputs)
        given = {name: value for name, value in inputs.items() if name != MODEL_ID}
        self._require(given)
        trained = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        with (
            parameters_used(trained) as used,
            blamed_on(self.contract.code, f"process_inputs failed on {_shown(given)}"),
        ):
            made = self.model.process_inputs(pipe=pipe, **given)  # type: ignore[operator]
        state = self._mapping("process_inputs", made)
        self._refuse_reserved("what process_inputs returns", state)
        if used:
            raise self._needs_grad(sorted(used))
        for name, value in state.items():
            if any(tensor.requires_grad for tensor in tensors_in(value)):
                raise DsctlError(
                    f"{self.contract.code}: process_inputs returns {name!r} with a gradient",
                    hint="compute it in forward: process_inputs runs under torch.no_grad",
                )
        self.refuse_nan("process_inputs", state)
        return state

    def forward(self, pipe: BasePipeline, state: Mapping[str, Any], **checkpointing: bool) -> dict[str, Any]:
        """Return what the second half makes of what `process_inputs` returned: kv_cache, lora, ..."""
        flags = {name: bool(checkpointing.get(name, False)) for name in CHECKPOINTING}
        with blamed_on(self.contract.code, "forward failed"):
            made = self.model(pipe=pipe, **flags, **state)
        outputs = self._mapping("forward", made)
        self.refuse_nan("forward", outputs)
        return outputs

    def refuse_nan(self, what: str, values: Mapping[str, Any]) -> None:
        """Raise a DsctlError for a value that is not finite; the device is waited for once."""
        found = [(name, tensor) for name, value in values.items() for tensor in tensors_in(value)]
        floats = [(name, tensor) for name, tensor in found if tensor.is_floating_point() and tensor.numel()]
        if not floats:
            return
        fine = torch.stack([torch.isfinite(tensor.detach()).all().cpu() for _, tensor in floats]).tolist()
        for (name, _), good in zip(floats, fine, strict=True):
            if not good:
                raise DsctlError(
                    f"{self.contract.code}: {what} returns {name!r} with values that are not finite",
                    hint="check its inputs and its weights; in float16, use another precision",
                )

    def _require(self, given: Mapping[str, Any]) -> None:
        parameters = inspect.signature(self.model.process_inputs).parameters.values()  # type: ignore[arg-type]
        named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
        for parameter in named:
            if parameter.default is parameter.empty and parameter.name not in (*RESERVED, *given):
                guess = near_miss(parameter.name, list(given))
                shown = ", ".join(map(repr, given)) or "nothing"
                raise DsctlError(
                    f"the template {self.name} needs the input {parameter.name!r}, and is given {shown}",
                    hint=f"is {guess!r} a slip of the pen?" if guess else f"add {parameter.name!r} to its inputs",
                )

    def _mapping(self, what: str, made: Any) -> dict[str, Any]:
        if not isinstance(made, Mapping) or not all(isinstance(name, str) for name in made):
            raise DsctlError(
                f"{self.contract.code}: {what} returns a {type(made).__name__}, not a dict of named values",
                hint='return a dict, such as {"kv_cache": ...}',
            )
        return dict(made)

    def _refuse_reserved(self, what: str, values: Mapping[str, Any]) -> None:
        for name in RESERVED:
            if name in values:
                raise DsctlError(
                    f"{what} has {name!r}, which is reserved, for the template {self.name}", hint="use another name"
                )

    def _needs_grad(self, used: Sequence[str]) -> DsctlError:
        heads = {name.split(".")[0] for name in used}
        others = [name for name, _ in self.model.named_children() if name not in heads]
        parts = ",".join(f"template_model.{name}" for name in others)
        return DsctlError(
            f"{self.contract.code}: process_inputs uses {used[0]}, which is trained, but no gradient passes there",
            hint=f"move that to forward, or leave it frozen: --trainable-models {parts}"
            if parts
            else "use it in forward",
        )


def load_template(
    config: ModelConfig | Contract,
    trust: Trust | None = None,
    *,
    checkpoint: Path | None = None,
) -> Template:
    """Load a template in float32, in evaluation mode, on the CPU.

    What starts at random starts the same every time, so that what stays frozen of it need not be in a trained file.
    Its weights are those that its code names, strictly: none missing, none left over. `checkpoint`, the file of a
    training, replaces those that it has. Raises a DsctlError, in one line, for whatever does not fit.
    """
    contract = config if isinstance(config, Contract) else read_contract(folder_of(config), trust or Trust())
    with torch.random.fork_rng(devices=[]), blamed_on(contract.code, f"{MODEL} cannot be made with its {CONFIG}"):
        torch.manual_seed(START)
        model = contract.model(**contract.config)
    if contract.weights:
        _load(model, _read(contract.weights), f"{contract.folder} ({WEIGHTS})", ())
    if checkpoint is not None:
        tensors, about = read_safetensors(checkpoint)
        parts = about.get(TRAINED_PARTS)
        # Whatever its training left as it was is not in the file: it is in the template's own weights or code.
        frozen = () if parts is None else _outside(model, parts.split(","))
        _load(model, tensors, str(checkpoint), model.state_dict() if contract.weights else frozen)
    processor = None
    if contract.processor is not None:
        with blamed_on(contract.code, f"{PROCESSOR} cannot be made"):
            processor = contract.processor()
        if not callable(processor):
            raise DsctlError(f"{contract.code}: {PROCESSOR} makes what cannot be called", hint="give it __call__")
    return Template(contract, model.eval().requires_grad_(False), processor)


def _read(files: Iterable[Path]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in files:
        own, _ = read_safetensors(file)
        twice = sorted(set(own) & set(tensors))
        if twice:
            raise DsctlError(f"{file} has {twice[0]}, which an earlier file has too", hint=f"correct {WEIGHTS}")
        tensors |= own
    return tensors


def _outside(model: nn.Module, parts: Sequence[str]) -> list[str]:
    return [
        name
        for name in model.state_dict()
        if not any(part == "" or name == part or name.startswith(f"{part}.") for part in parts)
    ]


def _load(model: nn.Module, tensors: Mapping[str, Tensor], where: str, optional: Iterable[str]) -> None:
    """Put `tensors` into `model`; only those named in `optional` may be missing."""
    own = model.state_dict()
    missing, extra = sorted(set(own) - set(tensors) - set(optional)), sorted(set(tensors) - set(own))
    if missing or extra:
        lacks = f"lacks {missing[0]}" if missing else f"has {extra[0]}, which the network does not have"
        count = len(missing) + len(extra)
        raise DsctlError(
            f"the weights in {where} do not fit {type(model).__name__}: it {lacks}"
            + (f" ({count} names in all)" if count > 1 else ""),
            hint="use the weights that were made with this model.py",
        )
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape:
            raise DsctlError(
                f"the weights in {where} do not fit {type(model).__name__}: {name} is {tuple(tensor.shape)} there and "
                f"{tuple(own[name].shape)} here",
                hint="use the weights that were made with this model.py",
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in a nest of dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for entry in inner for tensor in tensors_in(entry)]


def _shown(values: Mapping[str, Any]) -> str:
    text = ", ".join(f"{name}={value!r}" for name, value in values.items() if not tensors_in(value)) or "its inputs"
    return text if len(text) <= 80 else f"{text[:77]}..."
