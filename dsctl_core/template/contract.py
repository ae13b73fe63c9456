"""What a template's model.py defines: TEMPLATE_MODEL, and maybe its weights, config and data processor."""

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
from dsctl_core.template.errors import blamed_on
from dsctl_core.template.source import CODE
from dsctl_core.template.trust import Trust

MODEL, WEIGHTS = "TEMPLATE_MODEL", "TEMPLATE_MODEL_PATH"
CONFIG, PROCESSOR = "TEMPLATE_MODEL_CONFIG", "TEMPLATE_DATA_PROCESSOR"
METHODS = ("process_inputs", "forward")


@dataclass(frozen=True)
class Contract:
    """A template as its code describes it. `digest` is the SHA-256 of that code, which is what was run."""

    folder: Path
    digest: str
    model: type[nn.Module]
    weights: tuple[Path, ...]  # none: it starts at random
    config: dict[str, Any] = field(default_factory=dict)
    processor: Callable[[], Callable[..., Any]] | None = None
    source: str = ""

    @property
    def code(self) -> Path:
        """The file that was run."""
        return self.folder / CODE


def read_contract(folder: Path, trust: Trust) -> Contract:
    """Run the model.py in `folder`, if `trust` allows it, and return what it defines, checked.

    What runs is what was hashed: the file is read once. Raises a DsctlError, in one line, for code that does not run
    and for whatever of the contract it breaks.
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
        raise DsctlError(f"{code}: {MODEL} is {model!r}, which is no torch.nn.Module class", hint="name the class")
    for name in METHODS:
        _check_method(code, model, name)
    config = defined.get(CONFIG) or {}
    if not isinstance(config, Mapping):
        raise DsctlError(f"{code}: {CONFIG} is a {type(config).__name__}", hint="make it a dict of arguments")
    processor = defined.get(PROCESSOR)
    if processor is not None and not callable(processor):
        raise DsctlError(f"{code}: {PROCESSOR} is {processor!r}", hint="name a class whose objects can be called")
    weights = _weights(folder, code, defined.get(WEIGHTS))
    return Contract(folder, digest, model, weights, dict(config), processor, content.decode("utf-8", "replace"))


def _run(code: Path, content: bytes, digest: str) -> dict[str, Any]:
    module = types.ModuleType(f"dsctl_template_{digest[:16]}")
    module.__file__ = str(code)
    # Where dataclasses, pickling and typing look up the module of a class.
    sys.modules[module.__name__] = module
    with blamed_on(code, "it cannot be run"):
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


def _weights(folder: Path, code: Path, given: Any) -> tuple[Path, ...]:
    names = given if isinstance(given, list | tuple) else [] if given is None else [given]
    if not all(isinstance(name, str) and name for name in names) or (not names and given is not None):
        raise DsctlError(f"{code}: {WEIGHTS} is {given!r}", hint="make it a file name, a list of file names, or None")
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DsctlError(
                f"{code}: {WEIGHTS} is {name!r}, outside of the template's folder",
                hint="put the weights into the folder",
            )
        if not (folder / name).is_file():
            raise DsctlError(
                f"{folder / name} is missing, but {WEIGHTS} in {CODE} names it",
                hint=f"put the weights there, or write {WEIGHTS} = None to start at random",
            )
    return tuple(folder / name for name in names)
