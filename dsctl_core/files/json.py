"""Read JSON strictly, and check its structure against a declared type: one line names the file and the field.

All JSON that was written elsewhere is read here: nesting is bounded, a key stands once in an object, numbers are finite
and fit 64 bits, and text can be written as UTF-8. The structure is declared as a type, mostly a `TypedDict`:

    class Index(TypedDict):
        weight_map: dict[str, str]

    index = read_json_as(path, Index)  # a DsctlError: "a.json: weight_map is a list, not an object"
"""

from __future__ import annotations

import functools
import json
import math
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from dsctl_core.errors import DsctlError

DEPTH = 64  # nested lists and objects; published configs have at most 6
LEAST, MOST = -(2**63), 2**64 - 1  # whole numbers that fit 64 bits, signed or not
RESTORE = "restore the file from where it came"

Kind = TypeVar("Kind")
Keys = tuple[str | int, ...]  # the keys and indices that lead to a value


class JsonFault(ValueError):
    """A value that is JSON by its syntax and cannot be used; `keys` lead to it, and `fault` says what is wrong."""

    def __init__(self, keys: Keys, fault: str, repeated: str | None = None) -> None:
        super().__init__(f"{field_name(keys)} {fault}")
        self.keys, self.fault, self.repeated = keys, fault, repeated


class _Repeated(dict[str, Any]):
    """A JSON object in which `key` stands twice; it is refused where the keys that lead to it are known."""

    key: str


def decode_json(text: str | bytes, *, finite: bool = True, any_text: bool = False) -> Any:
    """Return the value of a JSON text.

    Raises a ValueError: `json.JSONDecodeError` for wrong syntax, `JsonFault` for nesting deeper than DEPTH, a key that
    stands twice in an object, a number that is not finite (unless `finite` is False) or exceeds 64 bits, and text with
    an unpaired surrogate (unless `any_text`).
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise JsonFault((), f"is nested more than {DEPTH} levels deep") from None
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            raise
        raise JsonFault((), "has a whole number beyond 64 bits") from None  # of more digits than Python reads
    check_values(value, finite=finite, any_text=any_text)
    return value


def check_values(value: Any, *, finite: bool = True, any_text: bool = False) -> None:
    """Raise a JsonFault for nesting, a number or a text that `decode_json` refuses; without recursion."""
    if not isinstance(value, dict | list):
        _check_plain((), value, finite, any_text)
        return
    waiting: list[tuple[Keys, Any]] = [((), value)]
    while waiting:  # index files have millions of values: only lists and objects are put aside
        keys, holder = waiting.pop()
        if len(keys) >= DEPTH:
            raise JsonFault(keys[:3], f"is nested more than {DEPTH} levels deep")
        if isinstance(holder, _Repeated):
            raise JsonFault(keys, f"has the key {holder.key!r} twice", holder.key)
        inner = []
        for key, part in holder.items() if isinstance(holder, dict) else enumerate(holder):
            kind = part.__class__
            if kind is str and part.isascii() or kind is int and LEAST <= part <= MOST:
                pass
            elif isinstance(part, dict | list):
                inner.append(((*keys, key), part))
            else:
                _check_plain((*keys, key), part, finite, any_text)
            if key.__class__ is str and not key.isascii() and not any_text:
                _check_text(keys, key)
        waiting += reversed(inner)


def _check_plain(keys: Keys, value: Any, finite: bool, any_text: bool) -> None:
    if isinstance(value, str):
        if not any_text:
            _check_text(keys, value)
    elif isinstance(value, float):
        if finite and not math.isfinite(value):
            raise JsonFault(keys, f"is {value}, not a finite number of 64 bits")
    elif isinstance(value, int) and not LEAST <= value <= MOST:
        raise JsonFault(keys, "is a whole number beyond 64 bits")


def _check_text(keys: Keys, text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise JsonFault(keys, "has an unpaired surrogate, which is no text")


def walk_values(value: Any) -> Iterator[tuple[Keys, Any]]:
    """Yield every value inside of `value`, which `check_values` has checked, with the keys that lead to it."""
    waiting: list[tuple[Keys, Any]] = [((), value)]
    while waiting:
        keys, each = waiting.pop()
        yield keys, each
        if isinstance(each, dict | list):
            inner = list(each.items() if isinstance(each, dict) else enumerate(each))
            waiting.extend(((*keys, key), part) for key, part in reversed(inner))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) == len(pairs):
        return built
    repeated = _Repeated(built)
    names = [name for name, _ in pairs]
    repeated.key = next(name for name in names if names.count(name) > 1)
    return repeated


def field_name(keys: Keys) -> str:
    """Return how a message names the value that `keys` lead to: `files.weights.bytes`, `[3].prompt`, or `it`."""
    text = ""
    for key in keys:
        if isinstance(key, str) and key.replace("-", "_").isidentifier():
            text += f".{key}" if text else key
        else:
            text += f"[{key!r}]"
    return text or "it"


def parse_json(text: str | bytes, where: str, *, finite: bool = True, hint: str = RESTORE) -> Any:
    """Return the value of a JSON text as `decode_json` does; a DsctlError names `where` it stands."""
    try:
        return decode_json(text, finite=finite)
    except JsonFault as fault:
        raise DsctlError(f"{where}: {fault}", hint=hint) from fault
    except UnicodeDecodeError as error:
        raise DsctlError(f"{where} is not UTF-8 text: {error.reason} at byte {error.start}", hint=hint) from error
    except ValueError as error:
        raise DsctlError(f"{where} is not valid JSON: {error}", hint=hint) from error


def read_line(line: str) -> dict[str, Any] | None:
    """Return the object in a line of a log, with numbers of any size; None for a line that is cut off or no object."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def decode_option(text: str) -> Any:
    """Return the value of a JSON text that an option was given; raise a ValueError that says in words what is wrong."""
    try:
        return decode_json(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"this is not JSON ({error.msg} at character {error.pos + 1})") from None


def read_bytes(path: Path) -> bytes:
    """Return the content of a file; a DsctlError if it cannot be read."""
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        reason = getattr(error, "strerror", None) or error
        raise DsctlError(f"{path} cannot be read: {reason}", hint="check the path") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; anything else there is a DsctlError naming the file."""
    value = parse_json(read_bytes(path).removeprefix(b"\xef\xbb\xbf"), str(path))
    if not isinstance(value, dict):
        raise DsctlError(f"{path} should hold a JSON object, and holds {kind_of(value)}", hint=RESTORE)
    return value


def read_json_as(path: Path, kind: type[Kind]) -> Kind:
    """Return the object in a JSON file, checked against the type `kind`; see `checked`."""
    return checked(read_json(path), kind, str(path))


def read_verified_json(path: Path, kind: type[Kind], hint: str = RESTORE) -> Kind:
    """Return the declared part of the object in a JSON file whose checksum has been compared; see `checked`.

    Such a file was written by dsctl, so that only its structure is checked, which takes a third of the time of
    `read_json_as`: an index has a line for each sample.
    """
    try:
        found = _adapter(cast("Any", kind)).validate_json(read_bytes(path), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            raise DsctlError(f"{path} is not valid JSON: {first['ctx']['error']}", hint=hint) from None
        raise DsctlError(f"{path}: {_fault_of(first)}", hint=hint) from None
    return cast("Kind", found)


def checked(value: Any, kind: type[Kind], where: str, hint: str = RESTORE) -> Kind:
    """Return `value` if it has the structure of `kind`; a DsctlError names `where` it stands, and the field.

    No value is converted: `"16"` is no number, 1 is not true. Keys that a TypedDict does not declare are left alone.
    """
    try:
        _adapter(cast("Any", kind)).validate_python(value, strict=True)
    except ValidationError as error:
        raise DsctlError(f"{where}: {_fault_of(error.errors(include_url=False)[0])}", hint=hint) from None
    return cast("Kind", value)


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "none_required": "null",
}


def _fault_of(found: Any) -> str:
    kind, field = found["type"], field_name(found["loc"])
    if kind == "missing":
        return f"it lacks the field {field}"
    shown = kind_of(found["input"])
    if kind == "too_short" and not found["input"]:
        return f"{field} is empty"
    if kind in WANTED:
        return f"{field} is {shown}, not {WANTED[kind]}"
    message = found["msg"].removeprefix("Input ")
    return f"{field} is {shown}, which {message[:1].lower()}{message[1:]}"


def kind_of(value: Any) -> str:
    """Return a JSON value for a message: its type if it is a list or an object, else the value itself."""
    if isinstance(value, dict | list | tuple):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, str):
        return f"the text {reprlib.repr(value)}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"the number {reprlib.repr(value)}"


def through_json(value: Any) -> Any:
    """Return `value` as it is after it was written as JSON and read again: tuples are lists, keys are text."""
    return json.loads(json.dumps(value))
