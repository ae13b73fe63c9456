"""Turns what pydantic found wrong into one line naming the option, the value and what it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from dsctl_core.errors import UsageError, near_miss, unknown_name
from dsctl_core.remote.address import shown

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails


EMPTY_PATH = "an empty text is no path"


class Positional:
    """Marks a field, in its `Annotated`, that is given by position instead of by a flag."""


@dataclass(frozen=True)
class Spelled:
    """Gives the option of a field, in its `Annotated`, another flag beside its own; to a positional one, a flag."""

    flag: str


@dataclass(frozen=True)
class Takes:
    """Says, in a field's `Annotated`, what its text must look like."""

    form: str


def spelled(name: str, field: FieldInfo | None = None) -> str:
    """Return how the option called `name` is written on the command line."""
    if field is not None and is_positional(field):
        return name.upper()
    return "--" + name.replace("_", "-")


def is_positional(field: FieldInfo) -> bool:
    """Return whether the option of a field is given by position."""
    return any(isinstance(mark, Positional) for mark in field.metadata)


def other_spellings(field: FieldInfo) -> tuple[str, ...]:
    """Return the further flags of the option of a field."""
    return tuple(mark.flag for mark in field.metadata if isinstance(mark, Spelled))


def is_empty_path(field: FieldInfo, value: Any) -> bool:
    """Return whether a field of paths has the value "", or a list with it: it would be the working folder."""
    texts = value if isinstance(value, list | tuple) else (value,)
    return takes_paths(field) and any(text == "" for text in texts)


def takes_paths(field: FieldInfo) -> bool:
    """Return whether a field is of a path, or of several."""
    kind = bare_type(field.annotation)
    return Path in (kind, *map(bare_type, get_args(kind)))


def default_text(field: FieldInfo) -> str | None:
    """Return the default of a field as it would be written, or None if it is no value that is worth telling."""
    default = field.default
    if isinstance(default, bool):
        return str(default).lower()
    text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return None if field.is_required() or default is None or text in ("", "{}") else text


def bare_type(annotation: Any) -> Any:
    """Return `annotation` without `Annotated` and without "or None"."""
    if get_origin(annotation) is Annotated:
        return bare_type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return bare_type(kinds[0]) if len(kinds) == 1 else annotation
    return annotation


def bounds(field: FieldInfo) -> dict[str, float]:
    """Return the bounds of a number's field, as {"ge": 1, "le": 100}."""
    found: dict[str, float] = {}
    for mark in _marks(field.annotation, list(field.metadata)):
        for name in ("gt", "ge", "lt", "le"):
            value = getattr(mark, name, None)
            if value is not None:
                found[name] = value
    return found


def _marks(annotation: Any, marks: list[Any]) -> list[Any]:
    """Gather what `Annotated` says at any depth of `annotation`, with a nested `Field` unfolded."""
    if get_origin(annotation) is Annotated:
        inner, *own = get_args(annotation)
        for mark in own:
            marks.extend(getattr(mark, "metadata", [mark]))
        return _marks(inner, marks)
    if get_origin(annotation) in (Union, UnionType):
        for kind in get_args(annotation):
            _marks(kind, marks)
    return marks


def choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the words that a field can be, or () when it is not a choice."""
    kind = bare_type(field.annotation)
    return tuple(get_args(kind)) if get_origin(kind) is Literal else ()


def requirement(field: FieldInfo) -> str:
    """Say what a field takes: "a whole number from 1 to 64", "one of no, bf16, fp16"."""
    kind = bare_type(field.annotation)
    forms = [mark.form for mark in _marks(field.annotation, list(field.metadata)) if isinstance(mark, Takes)]
    if forms:
        return forms[0]
    if choices(field):
        return f"one of {', '.join(choices(field))}"
    if kind is bool:
        return "true or false"
    if kind in (int, float):
        return f"{'a whole number' if kind is int else 'a number'}{_range(bounds(field))}"
    if kind is Path:
        return "a path"
    if get_origin(kind) is tuple:
        of_paths = bare_type(get_args(kind)[0]) is Path
        return ("paths" if is_positional(field) else "a path") if of_paths else "names separated by commas"
    return "text"


def _range(limits: Mapping[str, float]) -> str:
    low = f"of at least {limits['ge']}" if "ge" in limits else f"above {limits['gt']}" if "gt" in limits else ""
    high = f"at most {limits['le']}" if "le" in limits else f"below {limits['lt']}" if "lt" in limits else ""
    if "ge" in limits and "le" in limits:
        return f" from {limits['ge']} to {limits['le']}"
    return "".join(f" {part}" for part in (low, "and" if low and high else "", high) if part)


def explain(fields: Mapping[str, FieldInfo], found: Sequence[ErrorDetails]) -> UsageError:
    """Return the first of what pydantic found wrong as a usage error.

    A value that does not fit comes before one that is missing.
    """
    first = min(found, key=lambda each: each["type"] == "missing")
    name = str(first["loc"][0])
    field = fields.get(name)
    if field is None:
        return unknown_name("option", name, list(fields))
    return explain_value(spelled(name, field), field, first, shown=_without_quotes)


def explain_value(label: str, field: FieldInfo, found: ErrorDetails, shown: Callable[[Any], str] = repr) -> UsageError:
    """Return what is wrong with the value of the option written `label`; `shown` says how to write the value."""
    takes = f"{label} takes {requirement(field)}"
    kind, value = found["type"], found["input"]
    if kind == "missing":
        return UsageError(f"{label} is missing", hint=f"{takes}: {field.description}")
    if kind == "value_error":
        return UsageError(f"{label} is {value!r}: {found['ctx']['error']}", hint=takes)
    if kind == "literal_error":
        guess = near_miss(str(value), choices(field))
        hint = takes if guess is None else f"did you mean {guess!r}? {takes}"
        return UsageError(f"{label} is {value!r}, which is unknown", hint=hint)
    if kind == "string_too_short":
        return UsageError(f"{label} is empty", hint=f"{label}: {field.description}")
    if kind == "string_pattern_mismatch":
        return UsageError(f"{label} is {value!r}, which is unknown", hint=takes)
    small, large = ("greater_than", "greater_than_equal"), ("less_than", "less_than_equal")
    fault = "too small" if kind in small else "too large" if kind in large else f"not {_plain(requirement(field))}"
    return UsageError(f"{label} is {shown(value)}, which is {fault}", hint=takes)


def _plain(takes: str) -> str:
    """Drop the bounds of `requirement`, for a value whose kind is wrong already."""
    for kind in ("a whole number", "a number"):
        if takes.startswith(kind):
            return kind
    return takes


def _without_quotes(value: Any) -> str:
    """Show a number that came as text, as every flag's value does, as a number; anything else as Python writes it."""
    try:
        float(value)
    except (TypeError, ValueError):
        return repr(value)
    return str(value)


def on_this_machine(flag: str, address: Path) -> UsageError:
    """Return the error for an address where only a path of this machine is read or written."""
    return UsageError(
        f"{flag} is the address {shown(address)}, and must be on this machine",
        hint="give a path; a dataset, its table, a cache, and what `dsctl infer` and `dsctl lora` write can be at an "
        "address; a run has --mirror",
    )
