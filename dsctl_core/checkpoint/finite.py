"""Refuse weights that are not finite numbers where they are loaded, with the file and the tensor.

A NaN in one weight makes every picture black and every loss NaN, far from where it can be found.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.checkpoint.known_weights import is_known, marker_of, remember
from dsctl_core.checkpoint.of_transformers import names_in
from dsctl_core.errors import DsctlError
from dsctl_core.files.safetensors import tensor_entries

if TYPE_CHECKING:
    from torch import Tensor, nn

WHOLE = ("BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64")  # dtypes of whole numbers
VARIANCE = "running_var"  # of a batch norm
ANOTHER = "use another version of the file: this one was damaged, or written by a training that diverged"


def find_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first of the floating-point `tensors` with a value that is not finite, or None.

    Each tensor is read once. The sum of its values is finite only if each value is; where it is not, it can have
    overflowed, and the extremes decide. On a GPU the sums of all tensors are waited for together.
    """
    import torch

    with torch.no_grad():
        kept = [(name, each.detach()) for name, each in tensors if each.is_floating_point() and each.numel()]
        sums = [_widened(each).sum().float() for _, each in kept]
        if sums and sums[0].device.type != "cpu":
            sums = list(torch.stack(sums).cpu())
        for (name, each), total in zip(kept, sums, strict=True):
            if not math.isfinite(total) and not all(math.isfinite(extreme) for extreme in _widened(each).aminmax()):
                return name
    return None


def _widened(tensor: Tensor) -> Tensor:
    """Return `tensor`, in float32 if its values have 8 bits, of which torch computes no sums."""
    return tensor.float() if tensor.itemsize == 1 else tensor


def refuse_not_finite(tensors: Iterable[tuple[str, Tensor]], where: Path) -> None:
    """Raise a DsctlError if one of `tensors`, which were read from `where`, has a value that is not finite."""
    name = find_not_finite(tensors)
    if name is not None:
        raise DsctlError(f"{where}: {name} has a value that is no finite number", hint=ANOTHER)


def refuse_unusable_weights(model: nn.Module, files: Sequence[Path], where: Path, *, values: bool = True) -> None:
    """Raise a DsctlError if a weight of `model`, loaded from `files` of the component at `where`, cannot be used.

    That is a value that is not finite in the dtype of the model, a variance below 0, and whole numbers for a weight.
    On a CPU, files that passed are remembered: see dsctl_core.checkpoint.known_weights. Without `values`, only the
    headers of the files are read.
    """
    state: Mapping[str, Tensor] = model.state_dict()
    marker = None
    if all(tensor.device.type == "cpu" for tensor in state.values()):
        marker = marker_of(files, type(model).__name__, (str(tensor.dtype) for tensor in state.values()))
    if is_known(marker):
        return
    entries = {file: tensor_entries(file) for file in files}
    for file, own in entries.items():
        whole = [name for name, entry in own.items() if entry["dtype"] in WHOLE]
        for name, inside in names_in(model, whole).items():
            known = state.get(inside)
            is_weight = name.endswith((".weight", ".bias")) if known is None else known.is_floating_point()
            if is_weight:
                kind = own[name]["dtype"]
                raise DsctlError(f"{file}: {name} has whole numbers ({kind}), and is a weight", hint=ANOTHER)
    if not values:
        return
    found = find_not_finite(state.items())
    if found is not None:
        file = _file_of(found, entries) or where
        raise DsctlError(
            f"{file}: {found} has a value that is no finite number in {_dtype_name(state[found])}", hint=ANOTHER
        )
    for name, tensor in state.items():
        if name.endswith(VARIANCE) and tensor.numel() and float(tensor.min()) < 0:
            raise DsctlError(f"{where}: {name} has a variance below 0", hint=ANOTHER)
    remember(marker)


def _file_of(name: str, entries: Mapping[Path, Mapping[str, Any]]) -> Path | None:
    """Return the file with the tensor that a model calls `name`; a library can have renamed its beginning."""
    parts = name.split(".")
    for start in range(len(parts)):
        ending = ".".join(parts[start:])
        found = [file for file, names in entries.items() if any(f".{own}".endswith(f".{ending}") for own in names)]
        if len(found) == 1:
            return found[0]
    return None


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
