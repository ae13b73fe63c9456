"""Check the config.json of a component before its network is built: types of fields, and sizes beside its weights.

A field takes what the class of the network declares, by its annotation or its default. A network that has far more
parameters than the weight files hold is refused while it is built, rather than after minutes.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from dsctl_core.checkpoint.quantized import refuse_quantized_config
from dsctl_core.errors import DsctlError
from dsctl_core.files.json import RESTORE, kind_of, read_json
from dsctl_core.files.safetensors import safetensors_header

logger = logging.getLogger(__name__)
POSITIVE = ("latents_std", "scaling_factor")  # latents are divided by these
# What a network may have beyond twice its weight files: weights that several modules share, and tables.
SPARE_TENSORS, SPARE_ELEMENTS = 64, 2**24
MOST_WITHOUT_FILES = (2**16, 2**42)  # parameters, and their elements, of any published network
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
    return config


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


class _NoLargeTensors(TorchFunctionMode):
    """Raise the error that `too_large` returns as soon as a function returns a tensor of more than `most` elements."""

    def __init__(self, most: int, too_large: Callable[[], DsctlError]) -> None:
        super().__init__()
        self.most, self.too_large = most, too_large

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() > self.most:
            raise self.too_large()
        return result


@contextlib.contextmanager
def no_larger_than(
    files: Sequence[Path], folder: Path, config: Mapping[str, Any], cls: Any | None = None
) -> Iterator[None]:
    """Raise a DsctlError in this block as soon as a network is built with far more parameters than `files` hold.

    `config` is the content of the config.json in `folder`. The diffusers class `cls` is first built from it on the meta
    device, because such a class also makes tables, which are in no file, in memory.
    """
    entries = [entry for file in files for name, entry in safetensors_header(file)[0].items() if name != "__metadata__"]
    most, elements = MOST_WITHOUT_FILES
    if files:
        most = 2 * len(entries) + SPARE_TENSORS
        elements = 2 * sum(math.prod(entry["shape"]) for entry in entries) + SPARE_ELEMENTS
    count = size = 0

    def too_large() -> DsctlError:
        held = f"its {len(entries)} weights" if files else "any published one"
        name, number = max(_numbers(config), key=lambda pair: pair[1], default=("", 0))
        return DsctlError(
            f"{folder / 'config.json'} describes a network that is many times larger than {held} "
            f"(its largest number is {name} = {number})",
            hint="its config.json and its weights should come from one place",
        )

    def register(owner: Any, name: str, parameter: torch.Tensor | None) -> None:
        nonlocal count, size
        if parameter is not None:
            count, size = count + 1, size + parameter.numel()
            if count > most or size > elements:
                raise too_large()

    handle = register_module_parameter_registration_hook(register)
    try:
        if cls is not None:
            with torch.device("meta"), _NoLargeTensors(elements, too_large):
                _try_to_build(cls, config)
            count = size = 0
        yield
    finally:
        handle.remove()


def _try_to_build(cls: Any, config: Mapping[str, Any]) -> None:
    known = inspect.signature(cls.__init__).parameters
    try:
        cls(**{name: value for name, value in config.items() if name in known})
    except DsctlError:
        raise
    except Exception:  # what is wrong, or does not work on the meta device, is told when it is built
        logger.debug("%s cannot be built on the meta device", cls.__name__, exc_info=True)


def _numbers(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}.")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and not isinstance(number, bool):
                yield f"{prefix}{name}", number
