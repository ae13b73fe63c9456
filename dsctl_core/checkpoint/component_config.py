"""Check the fields of a component's config.json before its network is built.

A field takes what the class of the network declares, by its annotation or its default.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.checkpoint.quantized import refuse_quantized_config
from dsctl_core.errors import DsctlError
from dsctl_core.files.json import RESTORE, kind_of, read_json

if TYPE_CHECKING:
    from torch import nn

POSITIVE = ("latents_std", "scaling_factor")  # latents are divided by these
KNOWN_TYPES = ("bool", "int", "float", "str", "tuple", "list", "dict", "None")
WORDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text", "tuple": "a list"}
WORDS |= {"list": "a list", "dict": "an object", "None": "null"}


def read_component_config(folder: Path, cls: type[nn.Module] | None = None) -> dict[str, Any]:
    """Return the config.json of the component in `folder`.

    Raises DsctlError for weights that are quantized, for a divisor of latents that is not above 0, and, with the
    diffusers class `cls`, for a field of another type than the class declares.
    """
    path = folder / "config.json"
    config = read_json(path)
    refuse_quantized_config(path, config)
    _refuse_divisors(path, config)
    if cls is not None:
        _refuse_types(path, config, cls)
    return {name: value for name, value in config.items() if name != "quantization_config"}


def _refuse_divisors(path: Path, config: Mapping[str, Any]) -> None:
    for name in POSITIVE:
        value = config.get(name)
        for number in value if isinstance(value, list) else [] if value is None else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise DsctlError(f"{path}: {name} has {kind_of(number)}, not a number", hint=RESTORE)
            if number <= 0:
                raise DsctlError(f"{path}: {name} has {number:g}, by which latents are divided", hint=RESTORE)


def _refuse_types(path: Path, config: Mapping[str, Any], cls: type[nn.Module]) -> None:
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        allowed = _types_of(parameter)
        if name in config and allowed and not _fits(config[name], allowed):
            wanted = " or ".join(dict.fromkeys(WORDS[each] for each in KNOWN_TYPES if each in allowed))
            raise DsctlError(f"{path}: {name} is {kind_of(config[name])}, not {wanted}", hint=RESTORE)


def _types_of(parameter: inspect.Parameter) -> set[str]:
    """Return the names of the types that a parameter takes; an empty set if they are not known."""
    annotation, default = parameter.annotation, parameter.default
    if annotation is inspect.Parameter.empty:
        # A default of None says nothing of the other values.
        return set() if default is None or default is inspect.Parameter.empty else {type(default).__name__} & {*WORDS}
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    text = str(annotation) if "[" in str(annotation) or "|" in str(annotation) else text
    outer = re.sub(r"\[[^\[\]]*\]", "", text.replace("typing.", ""))
    names = {each.lower() if each in ("Tuple", "List", "Dict") else each for each in re.findall(r"\w+", outer)}
    return names if names <= {*KNOWN_TYPES} else set()


def _fits(value: Any, allowed: set[str]) -> bool:
    if value is None:
        return "None" in allowed
    if isinstance(value, bool):
        return "bool" in allowed
    if isinstance(value, int | float):
        return "float" in allowed or ("int" in allowed and value == int(value))
    if isinstance(value, list):
        return bool({"tuple", "list"} & allowed)
    return ("str" if isinstance(value, str) else "dict") in allowed
