"""Find the weight files of a component's folder: one file, or the shards of an index, in one variant.

A repository can hold the same weights several times, as variants with the precision in their names:
`model.fp16.safetensors`, or the shards of `model.safetensors.index.fp16.json`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from dsctl_core.errors import DsctlError
from dsctl_core.files.foreign import foreign_in, is_safetensors
from dsctl_core.files.json import RESTORE, read_json_as

INDEX = re.compile(r"[^.]+\.safetensors\.index(?:\.(?P<variant>\w+))?\.json")
FILE = re.compile(r"[^.]+?(?:-\d{5}-of-\d{5})?(?:\.(?P<variant>\w+?)(?:-\d{5}-of-\d{5})?)?\.safetensors")


class Index(TypedDict):
    """An index of shards: the file of each tensor."""

    weight_map: Annotated[dict[str, str], Field(min_length=1)]


@dataclass(frozen=True)
class WeightSet:
    """The weight files of a component; `variant` is that in their names ("fp16"), None without one."""

    files: tuple[Path, ...]
    variant: str | None


def find_weights(folder: Path) -> WeightSet:
    """Return the weight files in `folder`: those without a variant in their names, else those of its only variant.

    Raises a DsctlError for an index that names a missing shard or one outside of the folder, for several variants, and
    for a folder without safetensors files, with the format that its weights have instead.
    """
    sets: dict[str | None, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors.index*.json")):
        match = INDEX.fullmatch(path.name)
        if match is not None and match["variant"] not in sets:
            sets[match["variant"]] = _shards(path)
    indexed = tuple(sets)
    for path in sorted(folder.glob("*.safetensors")):
        match = FILE.fullmatch(path.name)
        variant = None if match is None else match["variant"]
        if variant not in indexed:
            sets.setdefault(variant, []).append(path)
    if not sets:
        raise _no_weights(folder)
    if None not in sets and len(sets) > 1:
        raise DsctlError(
            f"{folder} holds its weights in several variants: {', '.join(sorted(map(str, sets)))}",
            hint="keep the files of one of them there",
        )
    variant = None if None in sets else next(iter(sets))
    return WeightSet(tuple(sets[variant]), variant)


def _shards(index: Path) -> list[Path]:
    folder = index.parent
    names = sorted(set(read_json_as(index, Index)["weight_map"].values()))
    for name in names:
        if not name or ".." in PurePosixPath(name).parts or PureWindowsPath(name).anchor or set(name) & set("\\:\0"):
            raise DsctlError(
                f"{index} names the shard {name!r}, which is outside of {folder}",
                hint=f"do not use it: no published index does this; {RESTORE}",
            )
        if not (folder / name).is_file():
            raise DsctlError(f"{folder / name} is missing, but {index.name} names it", hint="download it again")
    return [folder / name for name in names]


def _no_weights(folder: Path) -> DsctlError:
    found = foreign_in(folder)
    if found is not None:
        file, form = found
        return DsctlError(f"{folder} has no *.safetensors; its {file.name} is {form.what}", hint=form.instead)
    for file in sorted(folder.iterdir()):
        if file.is_file() and is_safetensors(file):
            return DsctlError(
                f"{folder} has no *.safetensors; its {file.name} is one by its content",
                hint="rename it to the name that it was published with",
            )
    return DsctlError(f"{folder} has no weights (*.safetensors)", hint="check the path, or download the model again")
