"""Recognize weights that other tools have quantized, by their tensor names and their config, and name the format.

A quantized weight is stored as integers or fp8 beside scales in tensors of their own, so its tensors are not those of
the network. Plain fp8 without scales is not among them: it is read, and cast. Single files in scaled fp8, as ComfyUI
writes them, are read as well: `scaled_back` multiplies each weight by its scale. So are component folders in the
formats of `STORED`; see dsctl_core.checkpoint.packed.
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

FOUR_BITS = ("nf4", "fp4")  # of bitsandbytes, for which QLoRA (arXiv:2305.14314) has the names
LLM_INT8 = "LLM.int8"  # of bitsandbytes too (arXiv:2208.07339)
TORCHAO = "torchao"
INSTEAD = "fetch the weights in bf16, fp16 or fp32 instead, such as those in the model's own repository"
# What the names of tensors end in, by the format.
TENSOR_NAMES = {
    "bitsandbytes (4 bits, nf4 or fp4)": r"\.(nested_)?(absmax|quant_map)$|\.quant_state\.bitsandbytes__\w+$",
    "bitsandbytes (8 bits)": r"\.SCB$|\.weight_format$",
    "scaled fp8": r"(^|\.)scaled_fp8$|\.scale_(weight|input)$|[._](weight|input)_scale(_inv|_2)?$|\.comfy_quant$",
    "GPTQ, AWQ or Nunchaku": r"\.(qweight|qzeros|wscales|g_idx)$",
    "torchao": r"[._:](int_data|qdata)$",
    "optimum-quanto": r"\.weight\._(data|scale)$",
}
SCALED = "scaled fp8"
# The formats of components that are read as they are, and what the names of their tensors are recognized as.
STORED = {
    **dict.fromkeys(FOUR_BITS, ("bitsandbytes (4 bits, nf4 or fp4)",)),
    LLM_INT8: ("bitsandbytes (8 bits)",),
    TORCHAO: ("torchao", SCALED),  # whose scales have names of their own alone in torchao's int8
}
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

    Those in a format of `STORED` are read; see dsctl_core.checkpoint.packed.
    """
    settings = config.get("quantization_config")
    if settings is None or stored_format(config) is not None:
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if isinstance(settings, dict) and any(settings.get(f"load_in_{bits}bit") is True for bits in (4, 8)):
        method = method or "bitsandbytes"
    raise DsctlError(
        f"{path} has a quantization_config: its weights are quantized with {method or 'an unnamed method'}, "
        "which are not read",
        hint=INSTEAD,
    )


def stored_format(config: Mapping[str, Any]) -> str | None:
    """Return the format of `STORED` that the weights of a component are in, by its config; None for no such format."""
    settings = config.get("quantization_config")
    if not isinstance(settings, dict):
        return None
    method = settings.get("quant_method", "bitsandbytes")
    if method == "torchao":
        return TORCHAO
    four, eight = (settings.get(f"load_in_{bits}bit") is True for bits in (4, 8))
    if method != "bitsandbytes" or four == eight:
        return None
    if eight:
        return LLM_INT8
    form = settings.get("bnb_4bit_quant_type", "fp4")  # the default of bitsandbytes
    return form if form in FOUR_BITS else None


def stored_in(folder: Path) -> str | None:
    """Return the format of `STORED` that the component in `folder` is in, by its config.json, if it has one."""
    path = folder / "config.json"
    return stored_format(read_json(path)) if path.is_file() else None
