"""Build the network of a component: import its class, and instantiate it from a config without its weights."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.checkpoint.identify import class_of, is_original
from dsctl_core.errors import DsctlError
from dsctl_core.family import Component
from dsctl_core.files.json import read_json

if TYPE_CHECKING:
    from torch import nn


def component_class(component: Component, folder: Path | None = None) -> type[nn.Module]:
    """Import the class of `component`; if it can have several, the config.json in `folder` names the one to use."""
    name = component.class_name if folder is None or not component.other_classes else class_of(folder)
    return getattr(importlib.import_module(component.library), name)


def empty_component(component: Component, folder: Path) -> nn.Module:
    """Build a component from the config.json in `folder`, without loading its weights.

    Raises DsctlError for the config.json of an original release, which has other entries.
    """
    if is_original(component, folder):
        raise DsctlError(f"{folder} is in the layout of its original release", hint="give a folder in diffusers layout")
    cls: Any = component_class(component, folder)
    if component.library != "transformers":
        return cls.from_config(read_json(folder / "config.json"))
    from transformers import AutoConfig

    return cls(AutoConfig.from_pretrained(str(folder), local_files_only=True))
