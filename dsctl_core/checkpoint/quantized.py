"""Recognize weights that other tools have quantized, by their tensor names and their config, and name the format.

A quantized weight is stored as integers or fp8 beside scales in tensors of their own, so its tensors are not those of
the network. Plain fp8 without scales is not among them: it is read, and cast. Single files in scaled fp8, as ComfyUI
writes them, are read as well: `scaled_back` multiplies each weight by its scale.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.errors import DsctlError
from dsctl_core.files.json import read_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NF4 = "bitsandbytes (4 bits, nf4 or fp4)"
NF4_STATE = ".quant_state.bitsandbytes__nf4"  # what the name of the description of a packed weight ends in
INSTEAD = "fetch the weights in bf16, fp16 or fp32 instead, such as those in the model's own repository"
# What the names of tensors end in, by the format.
TENSOR_NAMES = {
    NF4: r"\.(nested_)?(absmax|quant_map)$|\.quant_state\.bitsandbytes__\w+$",
    "bitsandbytes (8 bits)": r"\.SCB$|\.weight_format$",
    "scaled fp8": r"(^|\.)scaled_fp8$|\.scale_(weight|input)$|[._](weight|input)_scale(_inv|_2)?$|\.comfy_quant$",
    "GPTQ, AWQ or Nunchaku": r"\.(qweight|qzeros|wscales|g_idx)$",
    "torchao": r"[._:](int_data|qdata)$",
    "optimum-quanto": r"\.weight\._(data|scale)$",
}
SCALED = "scaled fp8"
# X.scale_weight or X.weight_scale is the scale of X.weight: a number, or one for each row.
SCALE = re.compile(r"^(?P<module>.+)\.(?:scale_weight|weight_scale)$")
# What a computation in fp8 uses beside them: the scale of a layer's inputs, and marks of the format.
UNUSED = re.compile(r"\.(?:scale_input|input_scale|comfy_quant)$|(?:^|\.)scaled_fp8$")
FP8 = ("F8_E4M3", "F8_E5M2")
SCALE_DTYPES = ("F32", "BF16", "F16")
PATTERNS = {name: re.compile(pattern) for name, pattern in TENSOR_NAMES.items()}


def refuse_quantized(path: Path, names: Iterable[str], read: Iterable[str] = ()) -> None:
    """Raise a DsctlError if the tensor `names` of the file `path` are those of a quantized format not in `read`."""
    for name in names:
        for form, pattern in PATTERNS.items():
            if form not in read and pattern.search(name):
                problem = f"{path} holds weights quantized with {form} ({name}), which are not read"
                raise DsctlError(problem, hint=INSTEAD)


def refuse_unread_scales(path: Path, header: Mapping[str, Any]) -> None:
    """Raise a DsctlError for a quantized file, unless it is in scaled fp8 with one scale for each weight or each row.

    `header` is that of the safetensors file `path`.
    """
    refuse_quantized(path, header, read=[SCALED])
    for name in header:
        scale = SCALE.search(name)
        weight = header.get(f"{scale['module']}.weight") if scale else None
        if weight is not None and weight["dtype"] in FP8 and len(weight["shape"]) == 2:
            rows, entry = weight["shape"][0], header[name]
            if entry["dtype"] in SCALE_DTYPES and entry["shape"] in ([], [1], [rows], [rows, 1]):
                continue
        if not UNUSED.search(name):
            refuse_quantized(path, [name])


def is_scale(name: str) -> bool:
    """Return whether a tensor of a file in scaled fp8 is not one of the network."""
    return SCALE.search(name) is not None or UNUSED.search(name) is not None


def scaled_back(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a network, those in scaled fp8 multiplied by their scales.

    The products are computed in float32, which is exact up to its rounding, and returned in `dtype`. Tensors without a
    scale are returned unchanged.
    """
    found = {name: tensor for name, tensor in tensors.items() if not is_scale(name)}
    for name, scale in tensors.items():
        match = SCALE.search(name)
        if match:
            weight = f"{match['module']}.weight"
            found[weight] = (found[weight].float() * scale.float().reshape(-1, 1)).to(dtype)
    return found


def refuse_quantized_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raise a DsctlError if the config of a component, read from `path`, says that its weights are quantized.

    Networks of diffusers in nf4 are read; see dsctl_core.checkpoint.nf4.
    """
    settings = config.get("quantization_config")
    if settings is None or is_nf4(config):
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if isinstance(settings, dict) and any(settings.get(f"load_in_{bits}bit") is True for bits in (4, 8)):
        method = method or "bitsandbytes"
    raise DsctlError(
        f"{path} has a quantization_config: its weights are quantized with {method or 'an unnamed method'}, "
        "which are not read",
        hint=INSTEAD,
    )


def is_nf4(config: Mapping[str, Any]) -> bool:
    """Return whether `config` is that of a network of diffusers with weights in nf4, as bitsandbytes packs them."""
    settings = config.get("quantization_config")
    if not isinstance(settings, dict) or not isinstance(config.get("_class_name"), str):
        return False
    wanted = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    storage, method = settings.get("bnb_4bit_quant_storage", "uint8"), settings.get("quant_method", "bitsandbytes")
    same = all(settings.get(name) == value for name, value in wanted.items())
    return same and storage == "uint8" and method == "bitsandbytes"


def is_nf4_folder(folder: Path) -> bool:
    """Return whether `folder` has the config.json of such a network."""
    path = folder / "config.json"
    return path.is_file() and is_nf4(read_json(path))
