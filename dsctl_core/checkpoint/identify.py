"""Identify the component of a family that a file or folder holds, and check that all of its weights are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dsctl_core.checkpoint.quantized import (
    STORED,
    refuse_quantized,
    refuse_quantized_config,
    refuse_unread_scales,
    stored_in,
)
from dsctl_core.checkpoint.weight_set import find_weights
from dsctl_core.errors import DsctlError
from dsctl_core.family import Component, Family
from dsctl_core.files.digest import digest, digest_file, weights_identity
from dsctl_core.files.json import read_json
from dsctl_core.files.safetensors import safetensors_header


def class_of(folder: Path) -> str:
    """Return the class name in the config.json of the component in `folder`; raise DsctlError if there is none."""
    path = folder / "config.json"
    if not path.is_file():
        raise DsctlError(
            f"{folder} has no config.json, so what its weights are cannot be told",
            hint="keep each component's weights together with the config.json they were published with",
        )
    config = read_json(path)
    refuse_quantized_config(path, config)
    named = config.get("_class_name")
    if named is None:
        architectures = config.get("architectures")
        named = architectures[0] if isinstance(architectures, list) and architectures else None
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


def is_single_file(path: Path) -> bool:
    """Return whether `path` is a weight file without a config.json in its folder."""
    return path.is_file() and not (path.parent / "config.json").is_file()


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of the component in `folder`, a folder or a single file, and check each of them.

    See `find_weights` for which files these are. Raises DsctlError for a missing shard, a damaged file, and weights in
    another format or quantized by another tool, except for a single file in scaled fp8.
    """
    files = [folder] if folder.is_file() else list(find_weights(folder).files)
    for file in files:
        header, _ = safetensors_header(file)
        if is_single_file(file) and folder.is_file():
            refuse_unread_scales(file, header)
        else:
            form = stored_in(folder)
            refuse_quantized(file, header, read=() if form is None else STORED[form])
    return files


def identify_weights(folder: Path, also: Sequence[Path] = (), notes: Sequence[str] = ()) -> str:
    """Return a digest of the component in `folder`: of its config, its weights, and the files in `also`.

    `folder` can be a single file without a config. `notes` describe modifications of the weights after loading and are
    part of the digest.
    """
    config = [digest_file(folder / "config.json")] if folder.is_dir() else []
    files = [[path.name, digest_file(path)] for path in also]
    return f"sha256:{digest([config, list(notes), weights_identity(weight_files(folder)), files])}"
