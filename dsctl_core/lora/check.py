"""Refuse tensors of a LoRA file that cannot be the matrices or the alpha of a layer, with the name of the tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dsctl_core.checkpoint.finite import refuse_not_finite
from dsctl_core.errors import DsctlError

if TYPE_CHECKING:
    from torch import Tensor

AGAIN = "download or copy it again"


def check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise a DsctlError for an alpha that is not one number, and for matrices of rank 0 or of whole numbers.

    All values must be finite.
    """
    for name, tensor in tensors.items():
        if name.endswith(".alpha"):
            if tensor.numel() != 1 or tensor.is_complex():
                raise DsctlError(f"{path}: {name} has the shape {tuple(tensor.shape)}, not one number", hint=AGAIN)
        elif not tensor.is_floating_point():
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise DsctlError(f"{path}: {name} is {dtype}, not floating-point numbers", hint=AGAIN)
        elif tensor.numel() == 0:
            raise DsctlError(f"{path}: {name} is empty, its shape is {tuple(tensor.shape)}", hint=AGAIN)
    refuse_not_finite(tensors.items(), path)
