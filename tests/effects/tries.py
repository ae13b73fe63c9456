"""A command line that works, and the values to try for its options one by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dsctl_core.options.messages import bare_type, bounds, choices

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

Value = str | bool | tuple[str, ...] | None  # a switch is true or false; None takes an option of the base away
Options = dict[str, Value]


@dataclass(frozen=True)
class Try:
    """A value of an option.

    `beside` are options of both runs, with the option and without; `also` are further ones of the run with it, where
    it means nothing alone, as a height without a width.
    """

    value: Value
    beside: Options = field(default_factory=dict)
    also: Options = field(default_factory=dict)


Tries = dict[str, Value | Try]


@dataclass(frozen=True)
class Command:
    """A command line that works, and the values to try one by one. Options that are left out get `other_value`."""

    base: Options
    tries: Tries = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)  # options that change nothing here, and why that is right


def other_value(info: FieldInfo) -> Value:
    """Return a value that is not the default of a switch, a choice or a number; None for what has to be listed."""
    kind, limits, default = bare_type(info.annotation), bounds(info), info.default
    if kind is bool:
        return not default
    if choices(info):
        return next(word for word in choices(info) if word != default)
    if kind is int:
        return str((limits["ge"] if default is None else default) + 1)
    if kind is float:
        low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
        middle = low + 0.5 if high is None else (low + high) / 2
        return str(middle if middle != default else middle / 2)
    return None
