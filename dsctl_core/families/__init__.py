"""The model families, each a folder here or in one that was added. Imports no torch until a pipeline is asked for."""

from __future__ import annotations

import functools
import importlib
import json
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from dsctl_core.errors import DsctlError, unknown_name
from dsctl_core.family import Family, Preset
from dsctl_core.gc_pause import paused_gc

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline


@functools.cache
def families() -> dict[str, Family]:
    """Return every family by name: one for each folder beside this file, or in an added one, with a `family.py`."""
    folders = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
    found = [importlib.import_module(f"{__name__}.{folder}.family").FAMILY for folder in folders]
    return {family.name: family for family in found}


def add_families(folder: Path) -> None:
    """Find families in `folder` too, each a package in it as those here are: `dsctl_core.families.NAME.family`."""
    if str(folder) not in __path__:
        __path__.append(str(folder))
        families.cache_clear()


def remove_families(folder: Path) -> None:
    """Undo `add_families`."""
    __path__.remove(str(folder))
    families.cache_clear()


def load_family(name: str) -> Family:
    """Return the family called `name`; an unknown name is a usage error with the near miss."""
    known = families()
    if name not in known:
        raise unknown_name("family", name, list(known))
    return known[name]


def find_preset(name: str) -> tuple[Family, Preset]:
    """Return the preset called `name` and its family; an unknown name is a usage error with the near miss."""
    known = {preset.name: (family, preset) for family in families().values() for preset in family.presets}
    if name not in known:
        raise unknown_name("model", name, list(known), listing=f"known models: {', '.join(known)}; or give a folder")
    return known[name]


def pipeline_class(family: Family) -> type[BasePipeline]:
    """Import the pipeline class of `family`; this is where torch comes in."""
    module, _, name = family.pipeline.partition(":")
    with paused_gc():
        return getattr(importlib.import_module(module), name)


def family_of_class(name: str, where: Path) -> Family:
    """Return the family that has a component of the class `name`, which was found at `where`."""
    for family in families().values():
        if any(name in component.class_names for component in family.components):
            return family
    known = sorted({name for family in families().values() for c in family.components for name in c.class_names})
    raise DsctlError(f"{where} holds a {name}, which no family has", hint=f"known: {', '.join(known)}")


def identify_folder(path: Path) -> Family:
    """Return the family of a model folder in diffusers layout, from the class that its model_index.json names."""
    if not path.is_dir():
        problem = f"{path} is not a folder" if path.exists() else f"{path} does not exist"
        raise DsctlError(problem, hint="give a folder in diffusers layout, which has a model_index.json")
    index = path / "model_index.json"
    if not index.is_file():
        raise DsctlError(
            f"{path} has no model_index.json", hint="give the folder that holds transformer/, vae/ and the others"
        )
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DsctlError(f"{index} names no pipeline class: {error}", hint="restore it from where it came") from error
    for family in families().values():
        if named in family.pipeline_classes:
            return family
    known = ", ".join(name for family in families().values() for name in family.pipeline_classes)
    raise DsctlError(f"{path} is a {named}, which is no family known here", hint=f"known: {known}")
