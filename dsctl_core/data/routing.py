"""Operators that choose another operator by what a value is: its type, a folder, its suffix; and `ToList`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dsctl_core.data.operators import NAME_A_FILE, Operator
from dsctl_core.data.problems import DataError
from dsctl_core.data.rows import BadCell, kind_of
from dsctl_core.remote import anywhere

Step = Callable[[Any], Any]


class ToList(Operator):
    """Put a value into a list of one entry, for inputs that are lists."""

    def __call__(self, value: Any) -> list[Any]:
        """Return `[value]`."""
        return [value]

    def preview(self, value: Any) -> list[Any]:
        """Return `[value]`."""
        return [value]


class RouteByType(Operator):
    """Choose an operator by the type of the value.

    `operator_map` has pairs (type, operator); the type None matches every value. The first match is used.
    """

    def __init__(self, operator_map: Sequence[tuple[type | None, Step]]) -> None:
        self.operator_map = tuple(operator_map)

    def __call__(self, value: Any) -> Any:
        """Call the first operator whose type matches; raise `DataError` if none does."""
        return self._find(value)(value)

    def preview(self, value: Any) -> Any:
        """Return the preview of the first operator whose type matches."""
        return preview_of(self._find(value), value)

    def _find(self, value: Any) -> Step:
        if isinstance(value, BadCell):
            raise value.error
        for kind, operator in self.operator_map:
            if kind is None or isinstance(value, kind):
                return operator
        if value is None:
            raise DataError("the cell is empty", hint=NAME_A_FILE, kind="missing file")
        raise DataError(
            f"the value is {kind_of(value)}, not a file name", hint='write it as "a.png"', kind="missing file"
        )


class RouteByExtensionName(Operator):
    """Choose an operator by the suffix of a file name.

    `operator_map` has pairs (suffixes, operator); None instead of suffixes matches every name. The first match is
    used. Suffixes are in lower case, without the dot: `(("jpg", "png"), LoadImage())`.
    """

    def __init__(self, operator_map: Sequence[tuple[Sequence[str] | None, Step]]) -> None:
        self.operator_map = tuple(operator_map)

    def __call__(self, value: Any) -> Any:
        """Call the first operator whose suffixes match; raise `DataError` if none do."""
        return self._find(value)(value)

    def preview(self, value: Any) -> Any:
        """Return the preview of the first operator whose suffixes match."""
        return preview_of(self._find(value), value)

    def _find(self, value: Any) -> Step:
        suffix = Path(value).suffix.lower().removeprefix(".")
        for suffixes, operator in self.operator_map:
            if suffixes is None or suffix in suffixes:
                return operator
        known = [each for suffixes, _ in self.operator_map for each in suffixes or ()]
        raise DataError(
            f"{value} has the suffix {suffix!r}, which is not supported",
            hint=f"known: {', '.join(known)}",
            kind="not a picture",
        )


class RouteFolders(Operator):
    """Apply `folder` to the path of a folder, and `file` to every other path."""

    def __init__(self, folder: Step, file: Step) -> None:
        self.folder, self.file = folder, file

    def __call__(self, value: Path) -> Any:
        """Call the operator for the path."""
        return (self.folder if anywhere.is_dir(value) else self.file)(value)

    def preview(self, value: Path) -> Any:
        """Return the preview of the operator for the path."""
        return preview_of(self.folder if anywhere.is_dir(value) else self.file, value)


def preview_of(operator: Step, value: Any) -> Any:
    """Return the preview of `operator`, or None for a plain function, which has none."""
    return operator.preview(value) if isinstance(operator, Operator) else None
