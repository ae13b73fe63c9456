"""Build the network of a component: import its class, and instantiate it from a config without its weights."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.checkpoint.component_config import read_component_config
from dsctl_core.checkpoint.identify import class_of, is_original, weight_files
from dsctl_core.errors import DsctlError
from dsctl_core.family import Component, Family

if TYPE_CHECKING:
    from torch import nn

LONGEST = 300  # characters of a library's message


def component_class(component: Component, folder: Path | None = None) -> type[nn.Module]:
    """Import the class of `component`; if it can have several, the config.json in `folder` names the one to use."""
    name = component.class_name if folder is None or not component.other_classes else class_of(folder)
    return getattr(importlib.import_module(component.library), name)


def empty_component(component: Component, folder: Path) -> nn.Module:
    """Build a component from the config.json in `folder`, without loading its weights.

    Raises DsctlError for a config that does not describe a network of the class, or one far larger than the weights,
    and for the config.json of an original release, which has other entries.
    """
    if is_original(component, folder):
        raise DsctlError(f"{folder} is in the layout of its original release", hint="give a folder in diffusers layout")
    cls: Any = component_class(component, folder)
    with checked_build(component, folder, cls, weight_files(folder)) as config:
        return network_of(component, folder, cls, config)


def network_of(component: Component, folder: Path, cls: Any, config: dict[str, Any]) -> nn.Module:
    """Instantiate the class `cls` from `config`, the content of the config.json in `folder`."""
    if component.library != "transformers":
        return cls.from_config(config)
    from transformers import AutoConfig

    return cls(AutoConfig.from_pretrained(str(folder), local_files_only=True))


def published_component(family: Family, component: Component, variant: str | None) -> nn.Module | None:
    """Build a component in a published size (None: the first), without files; None if its config is not known."""
    known = family.published_config(component.name, variant)
    if known is None:
        return None
    cls: Any = getattr(importlib.import_module(component.library), known.class_name)
    return cls(cls.config_class(**known.config)) if component.library == "transformers" else cls(**known.config)


@contextlib.contextmanager
def checked_build(component: Component, folder: Path, cls: Any, files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Check the config.json in `folder` and give it to a block that builds a `cls` whose weights are in `files`.

    Exceptions of the library in the block become a DsctlError that names the folder, and so does a network far larger
    than its weights.
    """
    from dsctl_core.checkpoint.bounded_build import no_larger_than

    declared = cls if component.library != "transformers" else None
    config = read_component_config(folder, declared)
    with no_larger_than(files, folder, config, declared), refused_by_library(folder, cls):
        yield config


@contextlib.contextmanager
def refused_by_library(folder: Path, cls: Any) -> Iterator[None]:
    """Turn an exception of a library that builds or loads a `cls` from `folder` into a DsctlError.

    The libraries raise whatever a value runs into, so every exception but those of this project and of the memory is
    one about the content of the folder.
    """
    try:
        yield
    except (DsctlError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's
            raise
        raise DsctlError(
            f"{folder} does not fit a {cls.__name__}: {one_line(error)}",
            hint="its config.json and its weights should come from one place",
        ) from error


def one_line(error: BaseException) -> str:
    """Return the message of an exception as one line, cut off at LONGEST characters; its type if it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError | AttributeError | IndexError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
