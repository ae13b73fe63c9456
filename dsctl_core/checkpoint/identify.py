"""Which component of a family a file or folder is, and whether all of its weights are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsctl_core.checkpoint.files import PICKLE_SUFFIXES, check_safetensors
from dsctl_core.errors import DsctlError
from dsctl_core.family import Component, Family

INDEX_SUFFIX = ".safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; anything else there is a DsctlError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DsctlError(f"{path} cannot be read: {error.strerror or error}", hint="check the path") from error
    except ValueError as error:
        raise DsctlError(f"{path} is not valid JSON: {error}", hint="restore the file from where it came") from error
    if not isinstance(value, dict):
        raise DsctlError(f"{path} should hold a JSON object", hint="restore the file from where it came")
    return value


def class_of(folder: Path) -> str:
    """Return the class that the config.json of a component's folder names."""
    path = folder / "config.json"
    if not path.is_file():
        raise DsctlError(
            f"{folder} has no config.json, so what its weights are cannot be told",
            hint="keep each component's weights together with the config.json they were published with",
        )
    config = read_json(path)
    named = config.get("_class_name") or (config.get("architectures") or [None])[0]
    if not isinstance(named, str):
        raise DsctlError(f"{path} names no class", hint="it should have _class_name or architectures")
    return named


def identify_component(family: Family, folder: Path) -> Component:
    """Return the component of `family` whose weights are in `folder`."""
    name = class_of(folder)
    for component in family.components:
        if name in component.class_names:
            return component
    wanted = ", ".join(f"{c.name} ({' or '.join(c.class_names)})" for c in family.components)
    raise DsctlError(f"{folder} holds a {name}, which is no part of {family.name}", hint=f"{family.name} has {wanted}")


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that make up the component in `folder`, which can be a file; each is checked.

    With an index file these are the shards that it names; a missing shard is an error.
    """
    if folder.is_file():
        check_safetensors(folder)
        return [folder]
    indices = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
    if indices:
        names = sorted(set(read_json(indices[0]).get("weight_map", {}).values()))
        files = [folder / name for name in names]
        for file in files:
            if not file.is_file():
                raise DsctlError(f"{file} is missing, but {indices[0].name} names it", hint="download it again")
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES)
        if pickles:
            raise DsctlError(
                f"{folder} has its weights as a pickle ({pickles[0]}), which can run code when it is opened",
                hint="use a version of the model in safetensors",
            )
        raise DsctlError(f"{folder} has no weights (*.safetensors)", hint="check the path, or download the model again")
    for file in files:
        check_safetensors(file)
    return files
