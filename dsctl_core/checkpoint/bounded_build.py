"""Stop the building of a network that is far larger than its weight files, rather than after minutes.

A config.json with `num_layers: 1000000000` describes a network that takes all memory before its weights are looked at.
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
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from dsctl_core.errors import DsctlError
from dsctl_core.files.safetensors import tensor_entries

LAYERS = re.compile(r"(layers|blocks|depth)$")  # fields that count what has a parameter at least
logger = logging.getLogger(__name__)
# What a network may have beyond twice its weight files: weights that several modules share, and tables.
SPARE_TENSORS, SPARE_ELEMENTS = 64, 2**24
MOST_WITHOUT_FILES = (2**16, 2**42)  # parameters, and their elements, of any published network


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

    `config` is the content of the config.json in `folder`. A diffusers class `cls` also makes tables, which are in no
    file, in memory: where the two largest numbers of the config could make too large a one, it is first built on the
    meta device.
    """
    entries = [entry for file in files for entry in tensor_entries(file).values()]
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

    # Configs of transformers make lists of as many entries as there are layers, before any parameter.
    if any(LAYERS.search(name) and number > most for name, number in _numbers(config)):
        raise too_large()
    handle = register_module_parameter_registration_hook(register)
    try:
        if cls is not None and math.prod(sorted(number for _, number in _numbers(config))[-2:]) > elements:
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
