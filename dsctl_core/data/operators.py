"""Operators: small steps, composed with `>>`, that turn a cell of the metadata into an input of the pipeline."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any

from dsctl_core.data.problems import DataError, explained_os_errors
from dsctl_core.data.rows import BadCell, blank, kind_of, text_cell
from dsctl_core.errors import near_miss
from dsctl_core.remote import anywhere
from dsctl_core.remote.address import is_remote, is_web, names_of_root

# A relative name that is written as `os.path.normpath` writes it and means nothing else: most are of this form.
PLAIN = re.compile(r"(?:[\w-][\w .,()+@=-]*/)*[\w-][\w .,()+@=-]*", re.ASCII)
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)  # https://..., s3://..., and a picture as text
NAME_A_FILE = "add a file name, or remove the row"


class Operator(ABC):
    """One step. `a >> b` passes the result of `a` to `b`, which may be any function."""

    @abstractmethod
    def __call__(self, value: Any) -> Any:
        """Return the input of the next step, made from `value`."""

    @abstractmethod
    def preview(self, value: Any) -> Any:
        """Raise the errors of `__call__` that can be found without its costly work, such as decoding.

        `value` is the preview of the step before, and the result is the input of the next preview: a path is a path,
        an image is its (width, height).
        """

    def __rshift__(self, following: Callable[[Any], Any]) -> Chain:
        return Chain((self, following))


class Chain(Operator):
    """A sequence of steps; each gets the result of the one before."""

    def __init__(self, steps: tuple[Callable[[Any], Any], ...]) -> None:
        self.steps = steps

    def __call__(self, value: Any) -> Any:
        """Return the result of the last step."""
        for step in self.steps:
            value = step(value)
        return value

    def preview(self, value: Any) -> Any:
        """Preview the steps in turn. A plain function has no preview: the result is None from there on."""
        for step in self.steps:
            if not isinstance(step, Operator):
                return None
            value = step.preview(value)
        return value


class SequentialProcess(Operator):
    """Apply an operator to each entry of a list."""

    def __init__(self, operator: Callable[[Any], Any]) -> None:
        self.operator = operator

    def __call__(self, value: Any) -> list[Any]:
        """Return the list of results; raise `DataError` for a value that is not a list, or is empty."""
        return [self.operator(entry) for entry in self._entries(value)]

    def preview(self, value: Any) -> list[Any]:
        """Return the previews of the entries."""
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
    """Turn a file name in the dataset into a path below `base_path`.

    Unless `allow_outside` is set, absolute paths and `..` that lead out of the folder are refused: a downloaded dataset
    must not read other files of this machine. Only the name is checked, not the target of a link, because many
    datasets are stored as links. With `folders` the preview takes a folder too. With `checked_next` a preview leaves it
    to the next step to look for the file.
    """

    def __init__(
        self,
        base_path: str | Path = "",
        allow_outside: bool = False,
        folders: bool = False,
        *,
        checked_next: bool = False,
    ) -> None:
        self.base_path, self.allow_outside, self.folders = Path(base_path), allow_outside, folders
        self.checked_next = checked_next
        self._inside = str(self.base_path / "_")[:-1]

    def __call__(self, value: Any) -> Path:
        """Return the path. The next step checks that the file exists."""
        if type(value) is str and PLAIN.fullmatch(value):
            return self.base_path / value
        if value is None or (isinstance(value, str) and blank(value)):
            raise DataError("the cell is empty", hint=NAME_A_FILE, kind="missing file")
        if not isinstance(value, str | BadCell):
            problem = f"the value is {kind_of(value)}, not a file name"
            raise DataError(problem, hint='write it as "a.png"', kind="missing file")
        name = text_cell(value)
        if ADDRESS.match(name):
            raise DataError(
                "the path is a URL, not a file",
                hint="make the path relative to the dataset folder, which may be an address, or download the file",
                kind="path",
            )
        if self.allow_outside:
            return _without_dots(self.base_path / name)
        if Path(name).anchor or PureWindowsPath(name).is_absolute():
            raise DataError(
                f"the path is absolute, but paths must be relative to the dataset folder {self.base_path}",
                hint="make the path relative to the dataset folder, or give --allow-outside",
                kind="path",
            )
        inside = Path(os.path.normpath(name))
        if inside.parts[:1] == ("..",):
            raise DataError(
                f"the path leads out of the dataset folder {self.base_path}",
                hint="move the file to the dataset folder, use a --dataset-base-path that contains both, "
                "or give --allow-outside",
                kind="path",
            )
        return self.base_path / inside

    def preview(self, value: Any) -> Path | str:
        """Return the path; raise `DataError` if there is no file, unless the preview of the next step does that."""
        if self.checked_next:
            return self.text(value)
        path = self(value)
        if not (self.folders and anywhere.is_dir(path)):
            require_file(path)
        return path

    def text(self, value: Any) -> str:
        """Return the path as text, which takes a tenth of the time where there are millions of them."""
        if type(value) is str and PLAIN.fullmatch(value):
            return self._inside + value
        return str(self(value))

    def texts(self, names: Sequence[str]) -> list[str] | None:
        """Return the paths of many names as text; None if one of them has to be looked at closer."""
        return [self._inside + name for name in names] if all(map(PLAIN.fullmatch, names)) else None


def _without_dots(path: Path) -> Path:
    """Return an address without .. in it, which no store knows; a local path as it is."""
    if not is_remote(path) or ".." not in path.parts:
        return path
    scheme, *parts = path.parts
    count = names_of_root(scheme.rstrip(":/"))
    root, kept = "/".join(parts[:count]), []
    for part in parts[count:]:
        if part != "..":
            kept.append(part)
        elif kept:
            kept.pop()
        else:
            hint = "name a file in it, or give the dataset folder that has it"
            raise DataError(f"the path leads out of {scheme}//{root}", hint=hint, kind="path")
    return Path(scheme, root, *kept)


def require_file(path: Path) -> None:
    """Raise `DataError` if `path` is not a file; the hint names the file that was probably meant."""
    with explained_os_errors(path):
        if anywhere.is_file(path):
            return
        if anywhere.exists(path):
            raise DataError(f"{path} is a folder, not a file", hint="name a file in it", kind="path")
        if not path.is_symlink():
            raise DataError(f"{path} does not exist", hint=_missing_hint(path), kind="missing file")
        if not anywhere.is_apart(path):
            path.stat()  # raises for a broken or circular link


def _missing_hint(path: Path) -> str:
    if "\\" in path.name:
        return "use forward slashes in the path"
    if is_web(path):
        return "check the name in the row, and the address given with --dataset-base-path"
    if not anywhere.is_dir(path.parent):
        return f"there is no folder {path.parent}: check the path in the row and --dataset-base-path"
    names = _names_in(path.parent, 0 if anywhere.is_apart(path) else path.parent.stat().st_mtime_ns)
    same_stem = next((name for name in names if Path(name).stem.lower() == path.stem.lower()), None)
    # An edit distance to every name of a folder with many thousands of files would take seconds.
    guess = same_stem or (near_miss(path.name, names) if len(names) <= 2000 else None)
    if guess is None:
        return "check the file name, or remove the row"
    return f"did you mean {guess!r}?"


@lru_cache(maxsize=4)
def _names_in(folder: Path, changed_at: int) -> tuple[str, ...]:
    return tuple(each.name for each in anywhere.inside(folder))
