"""Tiny models with components in few bits, as bitsandbytes packs them: for tests without that library."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsctl_core.memory.quantize import BLOCK
from tests import nf4

FORMS = ("nf4", "fp4", "LLM.int8")
FOUR_BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_storage": "uint8"}
CONFIGS: dict[str, dict[str, Any]] = {
    "nf4": {**FOUR_BITS, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"},
    "fp4": {**FOUR_BITS, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False},
    "LLM.int8": {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0},
}
FILES = {"dit": "transformer/diffusion_pytorch_model.safetensors", "text_encoder": "text_encoder/model.safetensors"}
# The linear layers that are packed: those of blocks, and two of the denoiser beside them.
LAYERS = re.compile(r"(^|\.)(\w*blocks|layers)\.\d+\..*weight$|^(img_in|proj_out)\.weight$")
NESTED = 32  # numbers that share a scale in the second packing, 256 in published files


def use_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the formats of bitsandbytes as their papers define them where it is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        monkeypatch.setattr("dsctl_core.memory.quantize.bitsandbytes", lambda: nf4)
        for module in ("training.plan.stored", "commands.infer_offload", "training.model.open"):
            monkeypatch.setattr(f"dsctl_core.{module}.require_library", lambda _: None)


def pack_component(model: Path, component: str, form: str, *, twice: bool = False) -> None:
    """Pack a component of the model in `model`, as a folder in `form` has it."""
    file = model / FILES[component]
    change(file, lambda tensors: packed(tensors, form, twice=twice))
    write_config(file.parent, CONFIGS[form])


def change(file: Path, how: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Write the tensors of `file` as `how` changes them."""
    save_file(how(load_file(file)), file, metadata={"format": "pt"})


def write_config(folder: Path, settings: dict[str, Any]) -> None:
    """Write the `settings` of the packing into the config.json in `folder`."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": settings}))


def packed(tensors: dict[str, Tensor], form: str, *, twice: bool = False) -> dict[str, Tensor]:
    """Return the tensors with their linear layers packed, as bitsandbytes writes them; `twice`: the scales too."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not LAYERS.search(name) or tensor.dim() != 2:
            found[name] = tensor
        elif form == "LLM.int8":
            largest = tensor.abs().amax(1)
            held = (tensor * (127 / largest[:, None])).round().to(torch.int8)
            module = name.removesuffix(".weight")
            found |= {
                name: held,
                f"{module}.SCB": largest,
                f"{module}.weight_format": torch.zeros((), dtype=torch.uint8),
            }
        else:
            found |= _in_four_bits(name, tensor, form, twice)
    return found


def _in_four_bits(name: str, tensor: Tensor, form: str, twice: bool) -> dict[str, Tensor]:
    held, state = nf4.quantize_4bit(tensor, blocksize=BLOCK, quant_type=form)
    about: dict[str, Any] = {"quant_type": form, "blocksize": BLOCK, "dtype": "bfloat16", "shape": [*tensor.shape]}
    absmax, beside = state.absmax, {}
    if twice:
        offset = float(absmax.mean())
        rest = (absmax - offset).split(NESTED)
        largest = torch.stack([part.abs().max() for part in rest])
        code = torch.linspace(-1, 1, 256)
        scaled = torch.cat([part / top for part, top in zip(rest, largest, strict=True)])
        absmax = (scaled[:, None] - code).abs().argmin(1).to(torch.uint8)
        about |= {"nested_blocksize": NESTED, "nested_offset": offset, "nested_dtype": "float32"}
        beside = {f"{name}.nested_absmax": largest, f"{name}.nested_quant_map": code}
    text = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
    beside |= {f"{name}.absmax": absmax, f"{name}.quant_map": state.code.clone()}
    return {name: held, f"{name}.quant_state.bitsandbytes__{form}": text, **beside}
