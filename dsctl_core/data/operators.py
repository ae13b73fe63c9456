"""Operators: small steps from what a metadata cell holds to what a pipeline takes, composed with `>>`."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any

from dsctl_core.data.problems import DataError, explained_os_errors
from dsctl_core.data.rows import text_cell
from dsctl_core.errors import near_miss


class Operator(ABC):
    """One step; `a >> b` feeds what `a` returns to `b`, which may be any function."""

    @abstractmethod
    def __call__(self, value: Any) -> Any:
        """Turn `value` into what the next step takes."""

    @abstractmethod
    def preview(self, value: Any) -> Any:
        """Refuse what `__call__` would refuse, as far as that shows without the costly work.

        Takes what the preview of the step before returned, and returns what the next one's takes: a path stays a
        path, a picture is only its (width, height).
        """

    def __rshift__(self, after: Callable[[Any], Any]) -> Chain:
        return Chain((self, after))


class Chain(Operator):
    """Several steps, one after the other."""

    def __init__(self, steps: tuple[Callable[[Any], Any], ...]) -> None:
        self.steps = steps

    def __call__(self, value: Any) -> Any:
        """Run all steps."""
        for step in self.steps:
            value = step(value)
        return value

    def preview(self, value: Any) -> Any:
        """Preview up to the first step that is a plain function; what that would return is not known (None)."""
        for step in self.steps:
            if not isinstance(step, Operator):
                return None
            value = step.preview(value)
        return value


class SequentialProcess(Operator):
    """Do the same with each entry of a list."""

    def __init__(self, operator: Callable[[Any], Any]) -> None:
        self.operator = operator

    def __call__(self, value: Any) -> list[Any]:
        """Return the list of results."""
        return [self.operator(entry) for entry in self._entries(value)]

    def preview(self, value: Any) -> list[Any]:
        """Preview each entry."""
        entries = self._entries(value)
        return [self.operator.preview(entry) for entry in entries] if isinstance(self.operator, Operator) else []

    @staticmethod
    def _entries(value: Any) -> list[Any]:
        if not isinstance(value, list | tuple) or not value:
            raise DataError(
                "the value is not a list with at least one entry",
                hint='write it as ["a.png", "b.png"] in json',
                kind="list",
            )
        return list(value)


class ToAbsolutePath(Operator):
    """Turn a file name of the dataset into a path below `base_path`, and nowhere else unless `allow_outside`.

    Absolute paths and `..` that leaves the folder are refused: a dataset from somewhere else must not read this
    machine's other files. The test is on the name alone, since datasets kept as links into a store are common.
    """

    def __init__(self, base_path: str | Path = "", allow_outside: bool = False) -> None:
        self.base_path, self.allow_outside = Path(base_path), allow_outside

    def __call__(self, value: Any) -> Path:
        """Return the path; whether the file exists is for the next step to see."""
        name = text_cell(value)
        if name.startswith(("http://", "https://")):
            raise DataError(
                "the path is an address, not a file",
                hint="download the file into the dataset folder first",
                kind="path",
            )
        if self.allow_outside:
            return self.base_path / name
        if Path(name).anchor or PureWindowsPath(name).is_absolute():
            raise DataError(
                f"the path is absolute, but files are named from the dataset folder {self.base_path}",
                hint="write the path as seen from the dataset folder, or give --allow-outside",
                kind="path",
            )
        inside = Path(os.path.normpath(name))
        if inside.parts[:1] == ("..",):
            raise DataError(
                f"the path leads out of the dataset folder {self.base_path}",
                hint="move the file into the dataset folder, give a --dataset-base-path that holds both, "
                "or give --allow-outside",
                kind="path",
            )
        return self.base_path / inside

    def preview(self, value: Any) -> Path:
        """Return the path, and refuse one that leads to no file."""
        path = self(value)
        require_file(path)
        return path


def require_file(path: Path) -> None:
    """Refuse a path at which there is no plain file, naming the file that was most likely meant."""
    with explained_os_errors(path):
        if path.is_file():
            return
        if path.exists():
            raise DataError(f"{path} is a folder, not a file", hint="name a file in it", kind="path")
        if not path.is_symlink():
            raise DataError(f"{path} does not exist", hint=_missing_hint(path), kind="missing file")
        path.stat()  # a link that leads nowhere or in a circle: the system says which


def _missing_hint(path: Path) -> str:
    if "\\" in path.name:
        return "write the path with forward slashes"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}: check the path in the row and --dataset-base-path"
    names = _names_in(path.parent, path.parent.stat().st_mtime_ns)
    same_stem = next((name for name in names if Path(name).stem.lower() == path.stem.lower()), None)
    # Comparing letter by letter with every name would take seconds for a folder of many thousands.
    guess = same_stem or (near_miss(path.name, names) if len(names) <= 2000 else None)
    if guess is None:
        return "check the file name, or remove the row"
    return f"did you mean {guess!r}?"


@lru_cache(maxsize=4)
def _names_in(folder: Path, changed_at: int) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir()))
