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
    """Return the class name in the config.json of the component in `folder`; raise DsctlError if there is none."""
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
    """Return the component of `family` with its weights in `folder`.

    If several components have the same class, as two denoisers do, the name of the folder decides, else the first is
    returned. Raises DsctlError if no component of the family has the class.
    """
    name = class_of(folder)
    found = [component for component in family.components if component.is_named(name)]
    if found:
        return next((c for c in found if folder.name in (c.folder, c.original_folder)), found[0])
    wanted = ", ".join(f"{c.name} ({' or '.join(c.class_names)})" for c in family.components)
    raise DsctlError(f"{folder} holds a {name}, which is no part of {family.name}", hint=f"{family.name} has {wanted}")


def is_original(component: Component, folder: Path) -> bool:
    """Return whether `folder` holds `component` in the layout of its original release, by its config.json."""
    return component.original_class is not None and folder.is_dir() and class_of(folder) == component.original_class


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of the component in `folder`, a folder or a single file, and check each of them.

    With an index file these are the shards that it names. Raises DsctlError for a missing shard, a damaged file, or
    weights in pickle format.
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
    """Return a digest of the component in `folder`: of its config, its weights, and the files in `also`.

    `folder` can be a single file without a config. `notes` describe modifications of the weights after loading and are
    part of the digest.
    """
    config = [digest_file(folder / "config.json")] if folder.is_dir() else []
    files = [[path.name, digest_file(path)] for path in also]
    return f"sha256:{digest([config, list(notes), weights_identity(weight_files(folder)), files])}"
