"""Load networks that were published in nf4 (QLoRA, arXiv:2305.14314), as diffusers writes them with bitsandbytes.

Each linear layer X that was packed has, beside X.weight, X.weight.absmax and .quant_map and, where the first is packed
in turn, .nested_absmax and .nested_quant_map; X.weight.quant_state.bitsandbytes__nf4 is JSON as bytes. Layers stay as
they are in the file, and are made whole when they run; see dsctl_core.memory.quantize.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import NotRequired, TypedDict

from dsctl_core.checkpoint.build import checked_build, network_of
from dsctl_core.checkpoint.finite import refuse_not_finite
from dsctl_core.checkpoint.identify import identify_component, weight_files
from dsctl_core.checkpoint.quantized import NF4_STATE, is_nf4_folder
from dsctl_core.errors import DsctlError
from dsctl_core.family import Component, Family
from dsctl_core.files.json import checked, parse_json
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.memory.quantize import BLOCK, FORMATS, QuantizedLinear, hold_packed

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch import Tensor, nn

    from dsctl_core.checkpoint.model_config import ModelConfig

PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
AGAIN = "download it again; its config.json and its weights should come from one place"
LONGEST_STATE = 4096  # bytes of the JSON of a layer


class State(TypedDict):
    """What the JSON of a layer says, as far as it is read."""

    quant_type: str
    blocksize: int
    shape: list[int]
    nested_blocksize: NotRequired[int]
    nested_offset: NotRequired[float]


def stored_formats(family: Family, configs: Iterable[ModelConfig]) -> dict[str, str]:
    """Return the formats that components on the disk are held in by their files, by name; nothing is downloaded."""
    found = {}
    for config in configs:
        with suppress(DsctlError):  # what is missing is told where it is loaded
            paths = replace(config, skip_download=True).resolve()
            folder = paths[0] if paths[0].is_dir() else paths[0].parent
            parts = [folder / each.folder for each in family.components]
            for part in [folder, *parts]:
                if is_nf4_folder(part):
                    found[identify_component(family, part).name] = "nf4"
    return found


def load_nf4(component: Component, folder: Path, cls: Any, dtype: torch.dtype) -> nn.Module:
    """Load a network of diffusers from a folder in nf4, with what is not packed in `dtype`, frozen.

    Raises DsctlError unless the files hold exactly the tensors of the model.
    """
    from accelerate import init_empty_weights

    from dsctl_core.memory.dtypes import cast_weights, declare_float32_parts

    files = weight_files(folder)
    with checked_build(component, folder, cls, files) as config, init_empty_weights():
        model = network_of(component, folder, cls, config)
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_safetensors(file)[0]
    for name in [name for name in tensors if name.endswith(NF4_STATE)]:
        module = name.removesuffix(f".weight{NF4_STATE}")
        state = _state(folder, name, tensors.pop(name))
        parts = {part: tensors.pop(f"{module}.weight.{part}") for part in PARTS if f"{module}.weight.{part}" in tensors}
        _hold(folder, model, module, tensors.pop(f"{module}.weight", None), state, parts, dtype)
    packed = {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}
    if not packed:
        raise DsctlError(f"{folder} has no packed weight, but its config.json has them in nf4", hint=AGAIN)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in packed}
    for name in sorted(wanted.keys() ^ tensors.keys()):
        verb = "lacks" if name in wanted else "has, beyond the model,"
        raise DsctlError(f"{folder} {verb} {name}", hint=AGAIN)
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name]:
            raise DsctlError(f"{folder} misshapes {name}: it is {tuple(tensor.shape)}", hint=AGAIN)
    model.load_state_dict(tensors, strict=False, assign=True)
    declare_float32_parts(model, component.float32_parts)
    return cast_weights(model, dtype).eval().requires_grad_(False)


def _state(folder: Path, name: str, raw: Tensor) -> State:
    """Return what the JSON of a layer says; raise DsctlError for what is not nf4 in blocks of 64."""
    where = f"{folder}: {name}"
    if raw.element_size() != 1 or raw.is_floating_point() or raw.numel() > LONGEST_STATE:
        raise DsctlError(f"{where} is no description of a packed weight", hint=AGAIN)
    text = raw.flatten().numpy().tobytes()
    state = checked(parse_json(text, where, hint=AGAIN), State, where, hint=AGAIN)
    if (state["quant_type"], state["blocksize"]) != ("nf4", BLOCK) or len(state["shape"]) != 2:
        raise DsctlError(
            f"{where} is {state['quant_type']} in blocks of {state['blocksize']}; read is nf4 in blocks of {BLOCK}",
            hint="use weights in bf16, and pack them: --quantize NAME=nf4",
        )
    return state


def _hold(
    folder: Path,
    model: nn.Module,
    name: str,
    packed: Tensor | None,
    state: State,
    parts: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> None:
    """Have the linear layer `name` of `model` hold `packed`; raise DsctlError where it does not fit the layer."""
    import torch

    layer = dict(model.named_modules()).get(name)
    if not isinstance(layer, torch.nn.Linear) or state["shape"] != [layer.out_features, layer.in_features]:
        raise DsctlError(f"{folder} has {name} packed, which is no such layer of the model", hint=AGAIN)
    numbers = layer.out_features * layer.in_features
    blocks = -(-numbers // BLOCK)
    absmax = _absmax(parts, state)
    sizes = packed is not None and packed.dtype == torch.uint8 and packed.numel() == -(-numbers // 2)
    if packed is None or not sizes or absmax is None or absmax.numel() != blocks or parts["quant_map"].numel() != 16:
        raise DsctlError(f"{folder}: what belongs to {name}.weight is missing or has another size", hint=AGAIN)
    refuse_not_finite([(f"{name}.weight.absmax", absmax), (f"{name}.weight.quant_map", parts["quant_map"])], folder)
    beside = {"absmax": absmax, "code": parts["quant_map"].float()}
    hold_packed(layer, packed.reshape(-1, 1), beside, FORMATS["nf4"], dtype)


def _absmax(parts: Mapping[str, Tensor], state: State) -> Tensor | None:
    """Return the largest number of each block, float32; None if parts are missing.

    Packed, it is nested_quant_map[absmax] * nested_absmax + nested_offset, with a nested_absmax for each
    nested_blocksize of them.
    """
    if "absmax" not in parts or "quant_map" not in parts:
        return None
    absmax = parts["absmax"].flatten()
    if "nested_blocksize" not in state:
        return absmax.float() if absmax.is_floating_point() else None
    code, largest, size = parts.get("nested_quant_map"), parts.get("nested_absmax"), state["nested_blocksize"]
    if code is None or largest is None or code.numel() != 256 or size < 1 or "nested_offset" not in state:
        return None
    if largest.numel() != -(-absmax.numel() // size):
        return None
    scales = largest.float().flatten().repeat_interleave(size)[: absmax.numel()]
    return code.float().flatten()[absmax.long()] * scales + state["nested_offset"]
