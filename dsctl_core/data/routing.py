"""Operators that choose another operator by what they are given, and the one that makes a list of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dsctl_core.data.operators import Operator
from dsctl_core.data.problems import DataError
from dsctl_core.data.rows import BadCell, kind_of

Step = Callable[[Any], Any]


class ToList(Operator):
    """Put what comes into a list of one, for pipelines that take several."""

    def __call__(self, value: Any) -> list[Any]:
        """Return `[value]`."""
        return [value]

    def preview(self, value: Any) -> list[Any]:
        """Return `[value]`."""
        return [value]


class RouteByType(Operator):
    """Choose by the type of the value: `operator_map` is pairs (type, operator), in which the type None takes all."""

    def __init__(self, operator_map: Sequence[tuple[type | None, Step]]) -> None:
        self.operator_map = tuple(operator_map)

    def __call__(self, value: Any) -> Any:
        """Run the first operator whose type fits."""
        return self._find(value)(value)

    def preview(self, value: Any) -> Any:
        """Preview with the first operator whose type fits."""
        return preview_of(self._find(value), value)

    def _find(self, value: Any) -> Step:
        if isinstance(value, BadCell):
            raise value.error
        for kind, operator in self.operator_map:
            if kind is None or isinstance(value, kind):
                return operator
        if value is None:
            raise DataError("the cell is empty", hint="write a file name there, or remove the row", kind="missing file")
        raise DataError(
            f"the value is {kind_of(value)}, which names no file", hint='write it as "a.png"', kind="missing file"
        )


class RouteByExtensionName(Operator):
    """Choose by the suffix of a file name: pairs (suffixes, operator), in which the suffixes None take all.

    Suffixes are written without a dot and in small letters: `(("jpg", "png"), LoadImage())`.
    """

    def __init__(self, operator_map: Sequence[tuple[Sequence[str] | None, Step]]) -> None:
        self.operator_map = tuple(operator_map)

    def __call__(self, value: Any) -> Any:
        """Run the first operator whose suffixes fit."""
        return self._find(value)(value)

    def preview(self, value: Any) -> Any:
        """Preview with the first operator whose suffixes fit."""
        return preview_of(self._find(value), value)

    def _find(self, value: Any) -> Step:
        suffix = Path(value).suffix.lower().removeprefix(".")
        for suffixes, operator in self.operator_map:
            if suffixes is None or suffix in suffixes:
                return operator
        known = [known for suffixes, _ in self.operator_map for known in suffixes or ()]
        raise DataError(
            f"{value} has the suffix {suffix!r}, which is none that can be read",
            hint=f"known: {', '.join(known)}",
            kind="not a picture",
        )


def preview_of(operator: Step, value: Any) -> Any:
    """Return what `operator` previews; of a plain function that is not known (None)."""
    return operator.preview(value) if isinstance(operator, Operator) else None
