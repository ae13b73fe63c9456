"""Check the arguments of --optimizer-args against the optimizer's own signature: types, lengths, finite numbers."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

from dsctl_core.errors import UsageError
from dsctl_core.options.optimizer import Setting

NAMES = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text", "None": "none"}


def check_argument(optimizer: str, parameter: inspect.Parameter | None, setting: Setting) -> None:
    """Raise a UsageError unless the value of `setting` is of the type that `parameter` of the `optimizer` takes.

    The type is that of the default, or else that of the annotation. `parameter` is None for an argument that the
    signature does not name; of that, as of a type that is not known, the numbers must be finite.
    """
    value = setting.value
    if not _finite(value):
        _refuse(optimizer, setting, "a finite number")
    if parameter is None:
        return
    default = parameter.default
    if isinstance(default, tuple) and value is not None:
        count = len(default)
        if not isinstance(value, tuple | list) or len(value) != count or not all(map(_is_number, value)):
            _refuse(optimizer, setting, f"{count} numbers in brackets, such as {setting.name}={_shown(default)}")
        return
    kinds = _kinds(parameter)
    if kinds and not _fits(value, kinds):
        _refuse(optimizer, setting, " or ".join(NAMES[kind] for kind in NAMES if kind in kinds))


def _refuse(optimizer: str, setting: Setting, wanted: str) -> None:
    raise UsageError(
        f"--optimizer-args sets {setting.name} to {setting.text}, which is not {wanted}",
        hint=f"{setting.name} of {optimizer} takes {wanted}",
    )


def _kinds(parameter: inspect.Parameter) -> set[str]:
    """Return the names of the types that a parameter takes, keys of NAMES; an empty set if they are not known."""
    annotation, default = parameter.annotation, parameter.default
    if annotation is inspect.Parameter.empty:
        if isinstance(default, bool):
            return {"bool"}
        # Without an annotation 0 is often the default of what can be any number.
        return {"float"} if _is_number(default) else {"str"} if isinstance(default, str) else set()
    words = set(re.findall(r"\w+", annotation if isinstance(annotation, str) else str(annotation)))
    words -= {"class", "typing", "Union", "Optional", "NoneType", "torch", "Tensor"}
    if "Optional" in str(annotation) or "NoneType" in str(annotation) or default is None:
        words.add("None")
    if words <= set(NAMES):
        return words
    return {"bool"} if isinstance(default, bool) else set()


def _fits(value: Any, kinds: set[str]) -> bool:
    if value is None:
        return "None" in kinds
    if isinstance(value, bool):
        return "bool" in kinds
    if isinstance(value, int):
        return bool({"int", "float"} & kinds)
    return ("float" if isinstance(value, float) else "str" if isinstance(value, str) else "") in kinds


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    if isinstance(value, tuple | list | set):
        return all(map(_finite, value))
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, complex):
        return False
    try:
        return not _is_number(value) or math.isfinite(value)
    except OverflowError:  # a whole number beyond float's range
        return False


def _shown(default: tuple[Any, ...]) -> str:
    return f"({','.join(map(str, default))})"
