"""Recognize weights that other tools have quantized, by their tensor names and their config, and name the format.

A quantized weight is stored as integers or fp8 beside scales in tensors of their own, so its tensors are not those of
the network. Plain fp8 without scales is not among them: it is read, and cast.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dsctl_core.errors import DsctlError

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
PATTERNS = {name: re.compile(pattern) for name, pattern in TENSOR_NAMES.items()}


def refuse_quantized(path: Path, names: Iterable[str]) -> None:
    """Raise a DsctlError if the tensor `names` of the file `path` are those of a quantized format."""
    for name in names:
        for form, pattern in PATTERNS.items():
            if pattern.search(name):
                problem = f"{path} holds weights quantized with {form} ({name}), which are not read"
                raise DsctlError(problem, hint=INSTEAD)


def refuse_quantized_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raise a DsctlError if the config of a component, read from `path`, says that its weights are quantized."""
    settings = config.get("quantization_config")
    if settings is None:
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if isinstance(settings, dict) and any(settings.get(f"load_in_{bits}bit") is True for bits in (4, 8)):
        method = method or "bitsandbytes"
    raise DsctlError(
        f"{path} has a quantization_config: its weights are quantized with {method or 'an unnamed method'}, "
        "which are not read",
        hint=INSTEAD,
    )
