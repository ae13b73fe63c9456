"""Refuse tensors of a LoRA file that cannot be the matrices or the alpha of a layer, with the name of the tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dsctl_core.checkpoint.finite import refuse_not_finite
from dsctl_core.errors import DsctlError
from dsctl_core.lora.names import FACTOR

if TYPE_CHECKING:
    from torch import Tensor

AGAIN = "download or copy it again"


def check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise a DsctlError for an alpha that is not one number, and for matrices of rank 0 or of whole numbers.

    All values must be finite.
    """
    for name, tensor in tensors.items():
        if name == FACTOR:
            continue
        if name.endswith(".alpha"):
            if tensor.numel() != 1 or tensor.is_complex():
                raise DsctlError(f"{path}: {name} has the shape {tuple(tensor.shape)}, not one number", hint=AGAIN)
        elif not tensor.is_floating_point():
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise DsctlError(f"{path}: {name} is {dtype}, not floating-point numbers", hint=AGAIN)
        elif tensor.numel() == 0:
            raise DsctlError(f"{path}: {name} is empty, its shape is {tuple(tensor.shape)}", hint=AGAIN)
    refuse_not_finite(((name, tensor) for name, tensor in tensors.items() if not _unused(name, tensors)), path)


def _unused(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether `name` is the alpha of a LoKr of whole matrices: ai-toolkit's, of 1e10, is infinite in float16."""
    layer = name.removesuffix(".alpha")
    return layer != name and {f"{layer}.lokr_w1", f"{layer}.lokr_w2"} <= tensors.keys() and FACTOR not in tensors
