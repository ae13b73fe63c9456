"""Compute the matrix products of linear layers in float8 (E4M3 and E5M2, arXiv:2209.05433), forward and backward.

This is torchao's float8 training: inputs, weights and gradients are scaled as whole tensors, and rounded to 8 bits
where they are multiplied. Trained weights stay what they are. Those of a frozen layer are rounded once, and held so; no
gradient of them is computed. What is rounded at each step is worth its time where compiled code does it in few passes.
"""

from __future__ import annotations

import importlib.util
import re

import torch
from torch import nn

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.memory.quantize import linear_layers_of_blocks

CAPABILITY = (8, 9)  # of CUDA devices that multiply in float8: Ada, Hopper and later
DIVISOR = 16  # of both sizes of a matrix, which cuBLAS asks for
# These multiply one row of a sample, by which rounding a matrix takes longer than its product.
ONE_ROW = re.compile(r"(^|[._])(mod|modulation)(\.|$)", re.IGNORECASE)


def refuse_without_float8(device: torch.device, precision: str) -> None:
    """Raise an error where `device` has no products in float8, where none is installed, or beside other precisions."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY:
        name = "the CPU" if device.type != "cuda" else torch.cuda.get_device_properties(device).name
        raise UsageError(
            f"--float8 is given, but {name} multiplies no float8",
            hint="leave it out, or use an RTX 40, an L4, an L40, an H100 or later (compute capability 8.9)",
        )
    if precision != "bf16":
        raise UsageError(
            f"--float8 is given with --mixed-precision {precision}, and what is not multiplied is in bf16",
            hint="give --mixed-precision bf16, or leave --float8 out",
        )
    require_torchao()


def require_torchao() -> None:
    """Raise DsctlError if torchao is not installed."""
    if importlib.util.find_spec("torchao") is None:
        raise DsctlError("--float8 needs torchao, which is not installed", hint='pip install "dsctl[float8]"')


def use_float8(model: nn.Module, *, hold: bool = True, emulate: bool = False) -> int:
    """Have the linear layers in the repeated blocks of `model` multiply in float8, and return their number.

    Layers with a size that 16 does not divide stay as they are, and so do norms, modulations, LoRA layers and what the
    class of the model excludes or keeps in float32. LoRAs must already be added, and `requires_grad` be set. Without
    `hold`, frozen weights are rounded in each pass, such as those that FSDP2 is to divide. With `emulate`, the rounded
    numbers are multiplied in float32, which any device can do. Raises UsageError if no layer is left.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    from dsctl_core.memory.float8_frozen import FrozenFloat8Linear

    chosen = set(float8_layers(model))
    if not chosen:
        raise UsageError(
            f"the {type(model).__name__} has no linear layer in repeated blocks with sizes that {DIVISOR} divides, so "
            "--float8 has no effect on it",
            hint="leave it out",
        )
    # The gradient of a weight sums over tokens, whose number 16 need not divide.
    config = Float8LinearConfig(emulate=emulate, pad_inner_dim=True)
    convert_to_float8_training(model, config=config, module_filter_fn=lambda _, name: name in chosen)
    for layer in map(model.get_submodule, chosen):
        if not layer.weight.requires_grad:
            layer.__class__ = FrozenFloat8Linear
            assert isinstance(layer, FrozenFloat8Linear)
            if hold:
                layer.hold()
    return len(chosen)


def float8_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers of `model` that multiply in float8."""
    return [
        name
        for name, layer in linear_layers_of_blocks(model)
        if not (layer.in_features % DIVISOR or layer.out_features % DIVISOR or ONE_ROW.search(name))
    ]
