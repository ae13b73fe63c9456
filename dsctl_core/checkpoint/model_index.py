"""Read the model_index.json of a model folder in diffusers layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsctl_core.family import Family
from dsctl_core.files.json import checked, read_json


def read_index(family: Family, folder: Path) -> dict[str, Any]:
    """Return the model_index.json in `folder`; raise DsctlError for an entry of another type than the published ones.

    The entries are those that say of which kind a model of `family` is, such as whether it is distilled.
    """
    path = folder / "model_index.json"
    index = read_json(path)
    for name, value in {name: value for preset in family.presets for name, value in preset.index.items()}.items():
        if index.get(name) is not None and value is not None:
            checked(index[name], type(value), f"{path}, {name}")
    return index
