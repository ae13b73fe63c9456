"""The option `--quantize`: components and the formats that their weights are held in."""

from __future__ import annotations

import importlib.util
from typing import Annotated, Any

from pydantic import BeforeValidator

from dsctl_core.errors import DsctlError, UsageError, unknown_name
from dsctl_core.options.base import Takes

FORMATS = ("int8", "float8", "nf4")
# What formats need, also those that published files are in, with the extra of this package that installs it.
LIBRARIES = {**dict.fromkeys(("nf4", "fp4"), ("bitsandbytes", "quantize")), "torchao": ("torchao", "float8")}


def _checked_parts(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ValueError("it takes NAME=FORMAT, separated by commas")
    found = tuple(part.strip() for part in parts)
    names = [part.partition("=")[0] for part in found]
    for part in found:
        name, mark, form = part.partition("=")
        if not name or not mark:
            raise UsageError(f"--quantize is given {part!r}", hint="write it as NAME=FORMAT, such as dit=nf4")
        if "." in name:
            raise UsageError(
                f"--quantize names {name!r}, a part of a component", hint=f"name all of it: {name.split('.')[0]}"
            )
        if form not in FORMATS:
            raise unknown_name("format", form, FORMATS)
        if names.count(name) > 1:
            raise UsageError(f"--quantize names the {name} twice", hint="name each component once")
    return found


Quantized = Annotated[tuple[str, ...], BeforeValidator(_checked_parts), Takes("NAME=FORMAT, separated by commas")]


def quantized_pairs(quantized: tuple[str, ...], fp8: tuple[str, ...] = ()) -> tuple[tuple[str, str], ...]:
    """Return the components of `--quantize` with their formats; raise UsageError for one that `fp8` names too."""
    pairs = tuple((part.partition("=")[0], part.partition("=")[2]) for part in quantized)
    for name, _ in pairs:
        if name in fp8:
            raise UsageError(f"the {name} is named by --fp8-models and by --quantize", hint="name it in one of the two")
    return pairs


def require_library(form: str) -> None:
    """Raise DsctlError if the library that packs, or makes whole, in the format `form` is not installed."""
    library, extra = LIBRARIES.get(form, ("", ""))
    if library and importlib.util.find_spec(library) is None:
        raise DsctlError(f"{form} needs {library}, which is not installed", hint=f'pip install "dsctl[{extra}]"')
