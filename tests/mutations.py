"""Damage a JSON value or text: other types, missing parts, huge numbers, deep nesting, repeated keys."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from dsctl_core.errors import DsctlError

ODD: list[Any] = [None, True, False, -1, 0, 7, 10**9, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf")]
ODD += ["", "two", "../x", "\0", "\ud800", [], {}, [1, 2], [[]], {"a": {"b": []}}, "nested"]
DEEP = "[" * 5000 + "]" * 5000


def places(value: Any, keys: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the keys that lead to every value inside of `value`."""
    found = [keys] if keys else []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [each for key, part in inner for each in places(part, (*keys, key))]


@st.composite
def damaged_values(draw: st.DrawFn, value: Any) -> Any:
    """Give `value` with one to three of its parts replaced, removed, renamed or put into a list."""
    changed = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        choices = places(changed)
        if not choices:
            return draw(st.sampled_from(ODD))
        *way, last = draw(st.sampled_from(choices))
        holder = changed
        for key in way:
            holder = holder[key]
        kind = draw(st.sampled_from(["replace", "replace", "remove", "wrap", "rename"]))
        if kind == "remove":
            del holder[last]
        elif kind == "wrap":
            holder[last] = [holder[last]]
        elif kind == "rename" and isinstance(holder, dict):
            holder[f"{last}_"] = holder.pop(last)
        else:
            holder[last] = copy.deepcopy(draw(st.sampled_from(ODD)))
    return changed


@st.composite
def damaged_texts(draw: st.DrawFn, value: Any) -> str:
    """Give the JSON text of a damaged `value`, or a text of `value` that is damaged itself."""
    kind = draw(st.sampled_from(["value", "value", "value", "value", "repeat", "cut", "deep", "other", "huge"]))
    text = json.dumps(draw(damaged_values(value)) if kind == "value" else value)
    if kind == "repeat" and isinstance(value, dict) and value:
        name = draw(st.sampled_from(sorted(value)))
        return f"{{{json.dumps(name)}: 1, {text[1:]}"
    if kind == "cut":
        return text[: draw(st.integers(0, len(text)))]
    if kind == "other":
        return json.dumps(draw(st.sampled_from(ODD)))
    if kind == "huge":
        return text.replace(": ", ": 1e400, ", 1) if draw(st.booleans()) else "9" * 5000
    return text.replace('"nested"', DEEP) if kind == "value" else DEEP if kind == "deep" else text


def accepted_or_refused(read: Callable[[], Any]) -> bool:
    """Call `read`; return whether it returned. A DsctlError of one line with a hint refuses, anything else fails."""
    refusal = None
    try:
        read()
    except DsctlError as error:
        refusal = error
    if refusal is not None:
        assert refusal.problem
        assert "\n" not in refusal.problem
        assert refusal.hint
    return refusal is None
