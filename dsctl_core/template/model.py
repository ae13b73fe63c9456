"""Load a template, and run the two halves of its network: `process_inputs` and `forward`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dsctl_core.checkpoint.finite import refuse_not_finite
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.errors import CodeError, DsctlError, UsageError, near_miss
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.template.contract import CONFIG, MODEL, PROCESSOR, WEIGHTS, Contract, read_contract
from dsctl_core.template.errors import template_errors
from dsctl_core.template.source import config_of, folder_of
from dsctl_core.template.trust import Trust
from dsctl_core.template.used_parameters import parameters_used
from dsctl_core.template.uses import reads_any_input

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline

CHECKPOINTING = ("use_gradient_checkpointing", "use_gradient_checkpointing_offload")
RESERVED = ("pipe", *CHECKPOINTING)
INIT_SEED = 0  # seed of the random initial weights
MODEL_ID = "model_id"  # key of the inputs: the number of the template that they are for; not passed to the template
TRAINED_PARTS = "trained_parts"  # key of the header of a trained file: the modules of the template that it has


@dataclass(frozen=True)
class Template:
    """A loaded template: its contract, its network with its weights, and its data processor."""

    contract: Contract
    model: nn.Module
    processor: Any = None  # an object of the contract's data processor, or None

    @property
    def name(self) -> str:
        """The folder of the template, for messages."""
        return str(self.contract.folder)

    def annotate(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Apply the data processor, if there is one, to the inputs in a row of the dataset."""
        self._refuse_reserved("a row", inputs)
        values = {name: value for name, value in inputs.items() if name != MODEL_ID}
        if self.processor is None:
            return values
        with template_errors(self.contract.code, f"the data processor failed on {_shown(values)}"):
            result = self.processor(**values)
        return self._mapping("the data processor", result)

    @torch.no_grad()
    def process_inputs(self, pipe: BasePipeline, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run the first half of the template, without gradients, and return its state.

        It runs once per sample, so it must not use trained parameters: their values would become outdated. Raises
        `DsctlError` if it does, if an input is missing, or if the code fails.
        """
        self._refuse_reserved("an input of a template", inputs)
        values = {name: value for name, value in inputs.items() if name != MODEL_ID}
        self._require(values)
        trained = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        with (
            parameters_used(trained) as used,
            template_errors(self.contract.code, f"process_inputs failed on {_shown(values)}"),
        ):
            result = self.model.process_inputs(pipe=pipe, **values)  # type: ignore[operator]
        state = self._mapping("process_inputs", result)
        self._refuse_reserved("the result of process_inputs", state)
        if used:
            raise self._needs_grad(sorted(used))
        for name, value in state.items():
            if any(tensor.requires_grad for tensor in tensors_in(value)):
                raise CodeError(
                    f"{self.contract.code}: process_inputs returns {name!r} with a gradient",
                    hint="compute it in forward: process_inputs runs under torch.no_grad",
                )
        self.refuse_nan("process_inputs", state)
        return state

    def forward(self, pipe: BasePipeline, state: Mapping[str, Any], **checkpointing: bool) -> dict[str, Any]:
        """Run the second half of the template on the state of `process_inputs`; return kv_cache, lora, ..."""
        flags = {name: bool(checkpointing.get(name, False)) for name in CHECKPOINTING}
        with template_errors(self.contract.code, "forward failed"):
            result = self.model(pipe=pipe, **flags, **state)
        outputs = self._mapping("forward", result)
        self.refuse_nan("forward", outputs)
        return outputs

    def refuse_nan(self, what: str, values: Mapping[str, Any]) -> None:
        """Raise `DsctlError` if a tensor in `values` has NaN or infinity; `what` returned them."""
        tensors = [(name, tensor) for name, value in values.items() for tensor in tensors_in(value)]
        floats = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point() and tensor.numel()]
        if not floats:
            return
        finite = torch.stack([torch.isfinite(tensor.detach()).all().cpu() for _, tensor in floats]).tolist()
        for (name, _), is_finite in zip(floats, finite, strict=True):
            if not is_finite:
                raise DsctlError(
                    f"{self.contract.code}: {what} returns {name!r} with values that are not finite",
                    hint="check its inputs and its weights; instead of float16, use another precision",
                )

    def refuse_unread(self, inputs: Mapping[str, Any], flag: str) -> None:
        """Raise a UsageError for an input, given by the option `flag`, that `process_inputs` does not read."""
        if reads_any_input(self.contract.source, self.contract.model.__name__):
            return
        parameters = inspect.signature(self.model.process_inputs).parameters.values()  # type: ignore[arg-type]
        read = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD and each.name not in RESERVED]
        for name in inputs:
            if name not in (*read, *RESERVED, MODEL_ID):
                guess = near_miss(name, read)
                hint = f"did you mean {guess!r}?" if guess else f"it reads {', '.join(read) or 'nothing'}"
                raise UsageError(f"{flag} has {name!r}, which the template {self.name} does not read", hint=hint)

    def _require(self, inputs: Mapping[str, Any]) -> None:
        """Raise `DsctlError` if a parameter of process_inputs without a default is not in `inputs`."""
        parameters = inspect.signature(self.model.process_inputs).parameters.values()  # type: ignore[arg-type]
        named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
        for parameter in named:
            if parameter.default is parameter.empty and parameter.name not in (*RESERVED, *inputs):
                guess = near_miss(parameter.name, list(inputs))
                names = ", ".join(map(repr, inputs)) or "none"
                raise DsctlError(
                    f"the template {self.name} needs the input {parameter.name!r}, but its inputs are {names}",
                    hint=f"is {guess!r} a typing mistake?" if guess else f"add {parameter.name!r} to its inputs",
                )

    def _mapping(self, what: str, result: Any) -> dict[str, Any]:
        """Return `result`, which `what` returned, as a dict; raise `DsctlError` if it is not a dict of named values."""
        if not isinstance(result, Mapping) or not all(isinstance(name, str) for name in result):
            raise CodeError(
                f"{self.contract.code}: {what} returns a {type(result).__name__}, not a dict of named values",
                hint='return a dict, such as {"kv_cache": ...}',
            )
        return dict(result)

    def _refuse_reserved(self, what: str, values: Mapping[str, Any]) -> None:
        for name in RESERVED:
            if name in values:
                raise DsctlError(
                    f"{what} has the name {name!r}, which is reserved (template {self.name})", hint="use another name"
                )

    def _needs_grad(self, used: Sequence[str]) -> CodeError:
        heads = {name.split(".")[0] for name in used}
        others = [name for name, _ in self.model.named_children() if name not in heads]
        parts = ",".join(f"template_model.{name}" for name in others)
        return CodeError(
            f"{self.contract.code}: process_inputs uses {used[0]}, which is trained, but it runs without gradients",
            hint=f"use it in forward, or keep it frozen: --trainable-models {parts}" if parts else "use it in forward",
        )


def load_template(
    config: ModelConfig | Contract,
    trust: Trust | None = None,
    *,
    checkpoint: Path | None = None,
) -> Template:
    """Load a template in float32, in evaluation mode, on the CPU.

    Random initial weights are the same every time, so a trained file need not have the frozen ones. The weights that
    the code names are loaded strictly: no missing and no extra names. `checkpoint`, the file of a training run, then
    replaces the weights that it has. Raises `DsctlError` for weights that do not match the network, and for code that
    fails.
    """
    contract = config if isinstance(config, Contract) else read_contract(folder_of(config), trust or Trust())
    with torch.random.fork_rng(devices=[]), template_errors(contract.code, f"{MODEL} cannot be made with its {CONFIG}"):
        torch.manual_seed(INIT_SEED)
        model = contract.model(**contract.config)
    if contract.weights:
        _load(model, _read(contract.weights), f"{contract.folder} ({WEIGHTS})", ())
    if checkpoint is not None:
        tensors, metadata = read_safetensors(checkpoint)
        refuse_not_finite(tensors.items(), checkpoint)
        parts = metadata.get(TRAINED_PARTS)
        # Frozen weights are not in the file: they come from the template's own weights or from its initialization.
        frozen = () if parts is None else _names_outside(model, parts.split(","))
        _load(model, tensors, str(checkpoint), model.state_dict() if contract.weights else frozen)
    processor = None
    if contract.processor is not None:
        with template_errors(contract.code, f"{PROCESSOR} cannot be made"):
            processor = contract.processor()
        if not callable(processor):
            raise DsctlError(f"{contract.code}: objects of {PROCESSOR} are not callable", hint="define __call__")
    return Template(contract, model.eval().requires_grad_(False), processor)


def load_template_model(
    path: str | Path,
    torch_dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    *,
    trust_template: bool = False,
) -> nn.Module:
    """Return the network of the template `path`, with its own weights, frozen and in evaluation mode.

    `path` is a folder, or "OWNER/NAME:" on a hub. `trust_template` lets its code run even if it was not trusted on this
    machine before. Raises `DsctlError` as `load_template` does.
    """
    trust = Trust(trust_template, option="trust_template=True, or `dsctl template check` once")
    return load_template(config_of(str(path)), trust).model.to(device, torch_dtype)


def _read(files: Iterable[Path]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in files:
        loaded, _ = read_safetensors(file)
        refuse_not_finite(loaded.items(), file)
        duplicates = sorted(set(loaded) & set(tensors))
        if duplicates:
            raise DsctlError(f"{file} has {duplicates[0]}, which an earlier file has too", hint=f"correct {WEIGHTS}")
        tensors |= loaded
    return tensors


def _names_outside(model: nn.Module, parts: Sequence[str]) -> list[str]:
    """Return the names of the state dict that are not in one of the modules `parts`; "" is the whole model."""
    return [
        name
        for name in model.state_dict()
        if not any(part == "" or name == part or name.startswith(f"{part}.") for part in parts)
    ]


def _load(model: nn.Module, tensors: Mapping[str, Tensor], source: str, optional: Iterable[str]) -> None:
    """Copy `tensors` to the weights of `model`; only the names in `optional` may be missing."""
    state = model.state_dict()
    missing, extra = sorted(set(state) - set(tensors) - set(optional)), sorted(set(tensors) - set(state))
    if missing or extra:
        difference = f"{missing[0]} is missing" if missing else f"{extra[0]} is not in the network"
        count = len(missing) + len(extra)
        raise DsctlError(
            f"the weights in {source} do not match {type(model).__name__}: {difference}"
            + (f" ({count} names in all)" if count > 1 else ""),
            hint="use weights that were trained with this model.py",
        )
    for name, tensor in tensors.items():
        if state[name].shape != tensor.shape:
            raise DsctlError(
                f"the weights in {source} do not match {type(model).__name__}: {name} has the shape "
                f"{tuple(tensor.shape)}, but the network has {tuple(state[name].shape)}",
                hint="use weights that were trained with this model.py",
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for entry in inner for tensor in tensors_in(entry)]


def _shown(values: Mapping[str, Any]) -> str:
    text = ", ".join(f"{name}={value!r}" for name, value in values.items() if not tensors_in(value)) or "its inputs"
    return text if len(text) <= 80 else f"{text[:77]}..."
