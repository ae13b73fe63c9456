"""Find model families: each is a folder here or in an added folder. Imports no torch before a pipeline is loaded."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import TypedDict

from dsctl_core.errors import DsctlError, unknown_name
from dsctl_core.family import Family, Preset
from dsctl_core.files.foreign import foreign_in, refuse_foreign
from dsctl_core.files.json import read_json_as
from dsctl_core.gc_pause import paused_gc

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline


class ModelIndex(TypedDict):
    """The model_index.json of a folder in diffusers layout: the class of its pipeline, beside its components."""

    _class_name: str


@functools.cache
def families() -> dict[str, Family]:
    """Return all families by name: one for each package with a `family.py` in this folder or in an added one."""
    folders = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
    found = [importlib.import_module(f"{__name__}.{folder}.family").FAMILY for folder in folders]
    return {family.name: family for family in found}


def add_families(folder: Path) -> None:
    """Also find families in `folder`, each a package that is importable as `dsctl_core.families.NAME.family`."""
    if str(folder) not in __path__:
        __path__.append(str(folder))
        families.cache_clear()


def remove_families(folder: Path) -> None:
    """Undo `add_families`."""
    __path__.remove(str(folder))
    families.cache_clear()


def load_family(name: str) -> Family:
    """Return the family `name`; raise UsageError for an unknown name."""
    known = families()
    if name not in known:
        raise unknown_name("family", name, list(known))
    return known[name]


def find_preset(name: str) -> tuple[Family, Preset]:
    """Return the family of the preset `name`, and the preset; raise UsageError for an unknown name."""
    known = {preset.name: (family, preset) for family in families().values() for preset in family.presets}
    if name not in known:
        raise unknown_name("model", name, list(known), listing=f"known models: {', '.join(known)}; or give a folder")
    return known[name]


def pipeline_class(family: Family) -> type[BasePipeline]:
    """Import the pipeline class of `family`, and with it torch."""
    module, _, name = family.pipeline.partition(":")
    with paused_gc():
        return getattr(importlib.import_module(module), name)


def family_of_class(name: str, where: Path) -> Family:
    """Return the family with a component of the class `name`; raise DsctlError, naming `where`, if there is none."""
    for family in families().values():
        if any(component.is_named(name) for component in family.components):
            return family
    known = sorted({name for family in families().values() for c in family.components for name in c.class_names})
    raise DsctlError(f"{where} holds a {name}, which no family has", hint=f"known: {', '.join(known)}")


def identify_folder(path: Path) -> Family:
    """Return the family of a model folder in diffusers layout, from the pipeline class in its model_index.json.

    Raises DsctlError if `path` is not such a folder, or if the class belongs to no family.
    """
    if path.is_file():
        refuse_foreign(path)
    if not path.is_dir():
        problem = f"{path} is not a folder" if path.exists() else f"{path} does not exist"
        raise DsctlError(problem, hint="give a folder in diffusers layout, which has a model_index.json")
    index = path / "model_index.json"
    if not index.is_file():
        found = foreign_in(path)
        if found is not None:
            raise DsctlError(
                f"{path} has no model_index.json; its {found[0].name} is {found[1].what}", hint=found[1].instead
            )
        raise DsctlError(
            f"{path} has no model_index.json", hint="give the folder that holds transformer/, vae/ and the others"
        )
    named = read_json_as(index, ModelIndex)["_class_name"]
    for family in families().values():
        if named in family.pipeline_classes:
            return family
    known = ", ".join(name for family in families().values() for name in family.pipeline_classes)
    raise DsctlError(f"{path} is a {named}, which is no family known here", hint=f"known: {known}")
