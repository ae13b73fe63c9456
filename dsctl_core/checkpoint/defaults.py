"""Read and write the default option values of a model folder: the size, the steps and the guidance that it is for.

A folder in diffusers layout says nothing of them, so a model that was made from a preset has a file beside its
model_index.json, which other tools ignore.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsctl_core.checkpoint.model_index import read_index
from dsctl_core.errors import DsctlError
from dsctl_core.family import Family
from dsctl_core.files.atomic import write_json
from dsctl_core.files.json import read_json

DEFAULTS_FILE = "dsctl.json"


def folder_defaults(family: Family, folder: Path) -> dict[str, Any]:
    """Return the default option values of the model in `folder`, a model folder in diffusers layout.

    Those in its dsctl.json go over those that its model_index.json implies, and these over the family's. Raises
    DsctlError for a name or a value that is none of an option.
    """
    found = dict(family.defaults)
    if family.index_defaults is not None:
        found |= family.index_defaults(read_index(family, folder))
    return found | _own_defaults(family, folder / DEFAULTS_FILE)


def write_defaults(folder: Path, defaults: Mapping[str, Any]) -> None:
    """Write `defaults` into the model folder `folder`."""
    write_json(folder / DEFAULTS_FILE, {"defaults": dict(defaults)})


def _own_defaults(family: Family, path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    values = read_json(path).get("defaults")
    known: dict[str, list[Any]] = {}
    for defaults in (family.defaults, *(preset.defaults for preset in family.presets)):
        for name, value in defaults.items():
            known.setdefault(name, []).append(value)
    if not isinstance(values, dict):
        raise DsctlError(f'{path} has no object "defaults"', hint="restore the file, or remove it")
    for name, value in values.items():
        if name not in known:
            raise DsctlError(
                f"{path} has the default {name!r}, which {family.title} does not know",
                hint=f"it knows {', '.join(sorted(known))}",
            )
        # Models of a family can differ in the type, such as one guidance scale or one for each denoiser.
        if not any(_is_like(value, each) for each in known[name]):
            raise DsctlError(
                f"{path} has {value!r} as {name}", hint=f"write a value such as {known[name][0]!r}, or remove the file"
            )
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _is_like(value: Any, known: Any) -> bool:
    """Return whether `value` has the type of `known`; numbers must also be finite and not below 0.

    JSON has lists for tuples, such as a guidance scale for each denoiser.
    """
    if isinstance(known, tuple):
        return isinstance(value, list) and len(value) == len(known) and all(map(_is_like, value, known))
    if isinstance(known, bool) or not isinstance(known, int | float):
        return type(value) is type(known)
    if isinstance(value, bool) or not isinstance(value, int | float if isinstance(known, float) else int):
        return False
    return math.isfinite(value) and value >= 0
