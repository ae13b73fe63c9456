"""Identify the component of a family that a file or folder holds, and check that all of its weights are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dsctl_core.errors import DsctlError
from dsctl_core.family import Component, Family
from dsctl_core.files.digest import digest, digest_file, weights_identity
from dsctl_core.files.json import read_json
from dsctl_core.files.safetensors import PICKLE_SUFFIXES, check_safetensors

INDEX_SUFFIX = ".safetensors.index.json"


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
    """Return the component of `family` whose weights are in `folder`.

    Of several that have one class, as two denoisers have, it is the one that is kept in a folder of this name, else the
    first.
    """
    name = class_of(folder)
    found = [component for component in family.components if name in component.class_names]
    if found:
        return next((component for component in found if component.folder == folder.name), found[0])
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


def identify_weights(folder: Path, also: Sequence[Path] = (), notes: Sequence[str] = ()) -> str:
    """Return what tells the component in `folder` from every other: its config, its weights, and the files in `also`.

    `folder` can be a single file, which has no config. `notes` are what else is done to the weights.
    """
    config = [digest_file(folder / "config.json")] if folder.is_dir() else []
    files = [[path.name, digest_file(path)] for path in also]
    return f"sha256:{digest([config, list(notes), weights_identity(weight_files(folder)), files])}"
