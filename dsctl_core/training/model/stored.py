"""Find the dtypes that trained components are loaded in: never more bits than their files have."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dsctl_core.checkpoint.identify import weight_files
from dsctl_core.checkpoint.load import find_component_paths
from dsctl_core.files.safetensors import tensor_entries

if TYPE_CHECKING:
    from dsctl_core.families.resolve import ResolvedModel

STORED_AS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # dtype names in safetensors headers


def trained_dtypes(resolved: ResolvedModel, trained: Iterable[str], dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Return the dtype to load each of the components `trained`, whole or in part, in; `dtype` is that of the others.

    It is `dtype` where the files have nothing else: what is trained becomes float32 on the device, with the same
    values, and main memory never holds it so. Otherwise it is float32.
    """
    names = list(dict.fromkeys(trained))
    if not names:
        return {}
    places = find_component_paths(resolved.family, resolved.configs_of(names)).components
    return {name: dtype if name in places and is_stored_in(places[name], dtype) else torch.float32 for name in names}


def stored_dtypes(resolved: ResolvedModel, names: Iterable[str]) -> dict[str, torch.dtype]:
    """Return the dtype of those of the components `names` whose files have one dtype alone, and need no cast."""
    places = find_component_paths(resolved.family, resolved.configs_of(list(names))).components
    return {
        name: dtype
        for name, place in places.items()
        if name in names
        for dtype in STORED_AS
        if is_stored_in(place, dtype)
    }


def is_stored_in(place: Path, dtype: torch.dtype) -> bool:
    """Return whether all tensors of the component at `place`, a folder or a file, are stored in `dtype`."""
    found = {entry["dtype"] for file in weight_files(place) for entry in tensor_entries(file).values()}
    return found == {STORED_AS[dtype]}
