"""Combine the outputs of templates: of several templates, of the samples of a batch, and with the prompt embeddings.

The tokens of a `kv_cache` are concatenated, LoRAs are summed, and prompt embeddings are appended to those of the
prompt. Any other output is an input of the model of the same name, which only one template may write.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsctl_core.errors import DsctlError
from dsctl_core.lora.formats import LoraFile, decode
from dsctl_core.lora.layer import Update
from dsctl_core.lora.layers import layers_for, linear_shapes
from dsctl_core.media.kv_cache import join_kv_caches, stack_kv_caches, with_model_layout
from dsctl_core.stages.sample import padded_outputs
from dsctl_core.stages.split import FROM_THE_LOSS
from dsctl_core.template.contract import Contract
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline

KV_CACHE, LORA = "kv_cache", "lora"
Layers = dict[str, dict[str, list[Update]]]  # {component: {layer: the updates that are summed}}


def prompt_outputs(units: Sequence[PipelineUnit]) -> dict[str, str | None]:
    """Return the outputs that units compute per prompt (tokens), each with the name of its mask or None."""
    masks = padded_outputs(units)
    written = [name for unit in units if unit.separate_cfg for name in unit.output_params]
    return {name: masks.get(name) for name in written if name not in masks.values()}


def model_inputs(pipe: BasePipeline) -> tuple[str, ...]:
    """Return the names that a template may return: "lora", and the parameters of `model_fn` except masks."""
    excluded = {*FROM_THE_LOSS, *pipe.component_names, *prompt_outputs(pipe.units).values()}
    names = [name for name in inspect.signature(pipe.model_fn).parameters if name not in excluded]
    return (*names, LORA)


def join_outputs(pipe: BasePipeline, parts: Sequence[tuple[Contract, Mapping[str, Any]]]) -> dict[str, Any]:
    """Combine the outputs of several templates for one sample.

    Raises `DsctlError` for a name that the model does not read, and for two templates that return the same name if
    its values cannot be combined.
    """
    known, tokens = model_inputs(pipe), prompt_outputs(pipe.units)
    writers: dict[str, list[tuple[Contract, Any]]] = {}
    for contract, outputs in parts:
        for name, value in outputs.items():
            if name not in known:
                raise DsctlError(
                    f"the template {contract.folder} returns {name!r}, which {pipe.family.title} does not read",
                    hint=f"it reads {', '.join(known)}",
                )
            writers.setdefault(name, []).append((contract, value))
    joined: dict[str, Any] = {}
    for name, written in writers.items():
        if name == KV_CACHE:
            joined[name] = join_kv_caches([_cache_for(pipe, value) for _, value in written])
        elif name == LORA:
            joined[name] = _sum_layers([lora_layers(pipe, contract, value) for contract, value in written])
        elif name in tokens:
            joined[name] = torch.cat([_require_tokens(contract, name, value) for contract, value in written], dim=1)
        elif len(written) > 1:
            first, second = written[0][0].folder, written[1][0].folder
            raise DsctlError(
                f"the templates {first} and {second} both return {name!r}", hint="use one of the two, not both"
            )
        else:
            joined[name] = written[0][1]
    return joined


def _cache_for(pipe: BasePipeline, cache: Any) -> Any:
    """Return a kv_cache with the block names and the layout of the denoiser, if it is loaded."""
    loaded = [each.name for each in pipe.parts.denoisers if each.name in pipe.components]
    return with_model_layout(cache, pipe.component(loaded[0]), pipe.family.attention_blocks) if loaded else cache


def lora_layers(pipe: BasePipeline, contract: Contract, state: Any) -> Layers:
    """Return the layers of a LoRA state dict in any known format; raise `DsctlError` if they do not match the model."""
    code = contract.code
    if not isinstance(state, Mapping) or not all(isinstance(each, Tensor) for each in state.values()):
        raise DsctlError(f"{code}: its lora is not a state dict", hint="return a dict from names to tensors")
    components, flat = decode(code, dict(state), pipe.component_names)
    for name in components:
        if name not in pipe.in_iteration_models:
            raise DsctlError(
                f"{code}: its lora is for the {name}, which runs before the template",
                hint=f"return a LoRA on the {' or the '.join(pipe.in_iteration_models)}",
            )
    file = LoraFile(code, components, flat=flat)
    return {
        name: {layer: [each] for layer, each in layers_for(linear_shapes(pipe.component(name)), name, file).items()}
        for name in components
    }


def stack_outputs(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stack the outputs of the samples of a batch; raise `DsctlError` for values that cannot be stacked."""
    stacked: dict[str, Any] = {}
    for name in dict.fromkeys(name for sample in samples for name in sample):
        values = [sample.get(name) for sample in samples]
        if any(value is None for value in values):
            raise _cannot_stack(name)
        if name == KV_CACHE:
            stacked[name] = stack_kv_caches(values)
        elif name == LORA:
            stacked[name] = _stack_layers([value for value in values if value is not None])
        elif all(isinstance(value, Tensor) for value in values):
            tensors = [value for value in values if isinstance(value, Tensor)]
            if len({value.shape for value in tensors}) > 1:
                raise _cannot_stack(name)
            stacked[name] = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        else:
            if any(value != values[0] for value in values):
                raise _cannot_stack(name)
            stacked[name] = values[0]
    return stacked


def add_outputs(pipe: BasePipeline, shared: Inputs, side: Inputs, outputs: Mapping[str, Any]) -> Inputs:
    """Return the inputs of one side of classifier-free guidance with the outputs of templates added.

    `shared` are the inputs of both sides, and `side` those of the side. Raises `DsctlError` for prompt embeddings whose
    shape does not match.
    """
    tokens = prompt_outputs(pipe.units)
    added = dict(side)
    for name, value in outputs.items():
        if name not in tokens:
            added[name] = value
            continue
        embeds = added.get(name, shared.get(name))
        if embeds is None or embeds.shape[2:] != value.shape[2:] or len(value) not in (1, len(embeds)):
            raise DsctlError(
                f"a template returns {name} of shape {tuple(value.shape)}, but that of the prompt is "
                f"{None if embeds is None else tuple(embeds.shape)}",
                hint="return the shape (samples, tokens, channels)",
            )
        extra = value.to(embeds).expand(len(embeds), -1, -1)
        added[name] = torch.cat([embeds, extra], dim=1)
        mask_name = tokens[name]
        mask = None if mask_name is None else added.get(mask_name, shared.get(mask_name))
        if mask_name is not None and mask is not None:
            added[mask_name] = torch.cat([mask, mask.new_ones(extra.shape[:2])], dim=1)
    return added


def _require_tokens(contract: Contract, name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim != 3:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise DsctlError(
            f"{contract.code}: forward returns {name} as {shape}", hint="return the shape (samples, tokens, channels)"
        )
    return value


def _sum_layers(parts: Sequence[Layers]) -> Layers:
    total: Layers = {}
    for part in parts:
        for component, layers in part.items():
            for name, updates in layers.items():
                total.setdefault(component, {}).setdefault(name, []).extend(updates)
    return total


def _stack_layers(samples: Sequence[Layers]) -> dict[str, dict[str, list[list[Update]]]]:
    """Return `{component: {layer: updates of each sample}}`."""
    names = [{(component, layer) for component, layers in sample.items() for layer in layers} for sample in samples]
    if any(each != names[0] for each in names):
        raise _cannot_stack(LORA)
    return {
        component: {layer: [sample[component][layer] for sample in samples] for layer in layers}
        for component, layers in samples[0].items()
    }


def _cannot_stack(name: str) -> DsctlError:
    return DsctlError(
        f"the {name} of the samples of a batch differ, so they cannot be stacked", hint="use a batch size of 1"
    )
