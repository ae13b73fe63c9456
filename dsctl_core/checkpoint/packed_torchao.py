"""Read linear layers that torchao has packed, from safetensors.

A layer X has the parts of its weight, X._weight_qdata, X._weight_scale and so on; what torchao makes of them is JSON in
the metadata of the file. Only torchao's own functions put them together, of the classes of tensors that can be made
whole on any device. Files without that metadata are pickles under another name, or of versions before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from dsctl_core.checkpoint.build import one_line
from dsctl_core.checkpoint.finite import refuse_not_finite
from dsctl_core.checkpoint.packed_layer import AGAIN, Held
from dsctl_core.checkpoint.quantized import INSTEAD
from dsctl_core.checkpoint.stream import DTYPES
from dsctl_core.errors import DsctlError
from dsctl_core.files.json import checked, parse_json
from dsctl_core.memory.quantize import Unpack

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

MARK, DATA = "._weight_", "qdata"  # what parts of a weight are called: X._weight_qdata is the packed one
CLASSES = ("Int8Tensor", "Float8Tensor", "IntxUnpackedToInt8Tensor")  # of torchao.quantization
SMOOTHED = "act_pre_scale"  # by which the inputs of the layer are multiplied, and so its weight has been divided
LONGEST = 4096  # characters of the JSON of a layer
WHOLE_DTYPES = {"I8": "int8", "U8": "uint8", "I16": "int16", "I32": "int32", "I64": "int64"}


class Description(TypedDict):
    """What the metadata says of a weight."""

    _type: str
    _data: dict[str, Any]
    _tensor_data_names: list[str]


class Torchao:
    """Reads layers of torchao."""

    def layers(self, tensors: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return the layers that have a packed weight."""
        found: dict[str, list[str]] = {
            name.removesuffix(MARK + DATA): [] for name in tensors if name.endswith(MARK + DATA)
        }
        for name in tensors:
            layer, mark, _ = name.rpartition(MARK)
            if mark and layer in found:
                found[layer].append(name)
        return found

    def held(self, folder: Path, name: str, layer: nn.Linear, parts: Mapping[str, Tensor], about: str | None) -> Held:
        """Return the parts of the weight, as torchao has them."""
        own = {each.rpartition(MARK)[2]: tensor.contiguous() for each, tensor in parts.items()}
        weight = _described(folder, name, about, own)
        shape = (layer.out_features, layer.in_features)
        if tuple(weight.shape) != shape or not weight.dtype.is_floating_point:
            raise DsctlError(f"{folder} has {name} packed, which is no such layer of the model", hint=AGAIN)
        refuse_not_finite([(each, tensor) for each, tensor in parts.items()], folder)
        return own.pop(DATA), own, _unpacking(weight)

    def simulated(self, name: str, layer: nn.Linear, entries: Mapping[str, Any]) -> Held:
        """Return tensors of the sizes in the headers."""
        parts = {
            each.rpartition(MARK)[2]: layer.weight.detach().new_empty(entry["shape"], dtype=_dtype(entry["dtype"]))
            for each, entry in entries.items()
        }
        return parts.pop(DATA), parts, _sizes


def _described(folder: Path, name: str, about: str | None, parts: Mapping[str, Tensor]) -> Any:
    """Return torchao's tensor of the `parts` of the layer `name` by what the metadata says `about` it.

    Raises DsctlError for metadata that is missing or does not fit, and for tensors that are not read.
    """
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    where = f"{folder}: what its metadata says of {name}.weight"
    if about is None or len(about) > LONGEST:
        raise DsctlError(f"{folder} has no metadata of torchao for {name}.weight", hint=INSTEAD)
    said = checked(parse_json(about.encode(), where, hint=AGAIN), Description, where, hint=AGAIN)
    kind = f"{said['_type']} with scaled inputs" if SMOOTHED in parts else said["_type"]
    if kind not in CLASSES:
        problem = f"{folder} has {name}.weight as torchao's {kind}; read are {', '.join(CLASSES)}"
        raise DsctlError(problem, hint=INSTEAD)
    if sorted(said["_tensor_data_names"]) != sorted(parts):
        raise DsctlError(f"{folder}: what belongs to {name}.weight is not what its metadata says", hint=AGAIN)
    key = "layer.weight"
    metadata = {key: about, "tensor_names": json.dumps([key])}
    flat = {f"layer{MARK}{each}": tensor for each, tensor in parts.items()}
    try:
        made: Any = unflatten_tensor_state_dict(flat, metadata)[0][key]
        sizes, _ = unflatten_tensor_state_dict({each: tensor.to("meta") for each, tensor in flat.items()}, metadata)
        whole: Any = sizes[key]
        fits = whole.dequantize().shape == made.shape
    except Exception as error:  # torchao raises whatever a value runs into
        raise DsctlError(f"{where} does not fit its parts: {one_line(error)}", hint=AGAIN) from error
    if not fits:
        raise DsctlError(f"{where} does not fit its parts", hint=AGAIN)
    return made


def _unpacking(weight: Any) -> Unpack:
    """Return a function that makes whole what is held of `weight`, as torchao has it."""
    kind, (_, context), stride = type(weight), weight.__tensor_flatten__(), weight.stride()

    def unpack(held: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        parts = {DATA if name == "weight" else name: tensor for name, tensor in held.items()}
        made: Tensor = kind.__tensor_unflatten__(parts, context, shape, stride).dequantize().to(dtype)
        return made

    return unpack


def _sizes(held: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return a tensor by way of another in float32, as torchao's do."""
    return held["weight"].float().view(shape).to(dtype)


def _dtype(name: str) -> torch.dtype:
    import torch

    return getattr(torch, (DTYPES | WHOLE_DTYPES)[name])
