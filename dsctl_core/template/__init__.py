"""Template models: small networks, each with its code in a folder, that steer a frozen base model.

See docs/concepts/templates.md.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "Template": "dsctl_core.template.model",
    "TemplatePipeline": "dsctl_core.template.pipeline",
    "load_template": "dsctl_core.template.model",
    "load_template_model": "dsctl_core.template.model",
    "read_contract": "dsctl_core.template.contract",
}

__all__ = [*sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    """Import a public name on its first use."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'dsctl_core.template' has no attribute {name!r}")
