"""Read the contract of a template: the TEMPLATE_MODEL class in its model.py, its weights, config and data processor."""

from __future__ import annotations

import hashlib
import inspect
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from dsctl_core.errors import DsctlError
from dsctl_core.template.errors import template_errors
from dsctl_core.template.source import CODE
from dsctl_core.template.trust import Trust

MODEL, WEIGHTS = "TEMPLATE_MODEL", "TEMPLATE_MODEL_PATH"
CONFIG, PROCESSOR = "TEMPLATE_MODEL_CONFIG", "TEMPLATE_DATA_PROCESSOR"
METHODS = ("process_inputs", "forward")


@dataclass(frozen=True)
class Contract:
    """The definitions in a template's model.py. `digest` is the SHA-256 of the code that was run."""

    folder: Path
    digest: str
    model: type[nn.Module]
    weights: tuple[Path, ...]  # empty: randomly initialized
    config: dict[str, Any] = field(default_factory=dict)
    processor: Callable[[], Callable[..., Any]] | None = None
    source: str = ""

    @property
    def code(self) -> Path:
        """The file that was run."""
        return self.folder / CODE


def read_contract(folder: Path, trust: Trust) -> Contract:
    """Run the model.py in `folder`, if `trust` allows it, and return its definitions.

    The file is read once, so the code that runs is the code that was hashed. Raises `DsctlError` for code that fails,
    and for definitions that are missing or of a wrong type.
    """
    code = folder / CODE
    try:
        content = code.read_bytes()
    except OSError as error:
        raise DsctlError(f"{code} cannot be read: {error.strerror or error}", hint="check the path") from error
    digest = hashlib.sha256(content).hexdigest()
    trust.require(code, digest)
    defined = _run(code, content, digest)
    model = defined.get(MODEL)
    if model is None:
        raise DsctlError(f"{code} defines no {MODEL}", hint=f"end it with: {MODEL} = NameOfYourModule")
    if not (isinstance(model, type) and issubclass(model, nn.Module)):
        raise DsctlError(f"{code}: {MODEL} is {model!r}, not a class of torch.nn.Module", hint="assign the class")
    for name in METHODS:
        _check_method(code, model, name)
    config = defined.get(CONFIG) or {}
    if not isinstance(config, Mapping):
        raise DsctlError(
            f"{code}: {CONFIG} is a {type(config).__name__}", hint="make it a dict of the arguments of the class"
        )
    processor = defined.get(PROCESSOR)
    if processor is not None and not callable(processor):
        raise DsctlError(f"{code}: {PROCESSOR} is {processor!r}", hint="assign a class with a __call__ method")
    weights = _weights(folder, code, defined.get(WEIGHTS))
    return Contract(folder, digest, model, weights, dict(config), processor, content.decode("utf-8", "replace"))


def _run(code: Path, content: bytes, digest: str) -> dict[str, Any]:
    module = types.ModuleType(f"dsctl_template_{digest[:16]}")
    module.__file__ = str(code)
    # dataclasses, pickle and typing look up the module of a class here.
    sys.modules[module.__name__] = module
    with template_errors(code, "it cannot be run"):
        exec(compile(content, str(code), "exec"), module.__dict__)
    return module.__dict__


def _check_method(code: Path, model: type[nn.Module], name: str) -> None:
    method = getattr(model, name, None)
    if method is None or method is getattr(nn.Module, name, None):
        raise DsctlError(
            f"{code}: {model.__name__} has no {name}", hint=f"write `def {name}(self, ..., **kwargs)`, returning a dict"
        )
    parameters = inspect.signature(method).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        raise DsctlError(
            f"{code}: {name} of {model.__name__} does not take **kwargs",
            hint=f"write `def {name}(self, ..., **kwargs)`",
        )


def _weights(folder: Path, code: Path, value: Any) -> tuple[Path, ...]:
    names = value if isinstance(value, list | tuple) else [] if value is None else [value]
    if not all(isinstance(name, str) and name for name in names) or (not names and value is not None):
        raise DsctlError(f"{code}: {WEIGHTS} is {value!r}", hint="make it a file name, a list of file names, or None")
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DsctlError(
                f"{code}: {WEIGHTS} is {name!r}, which is outside the template's folder",
                hint="move the weights to the folder",
            )
        if not (folder / name).is_file():
            raise DsctlError(
                f"{folder / name} is missing, but {WEIGHTS} in {CODE} names it",
                hint=f"add that file, or write {WEIGHTS} = None for random initial weights",
            )
    return tuple(folder / name for name in names)
