"""The README.md of a packed template: what it is for, what it takes, and how to use it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsctl_core.errors import UsageError
from dsctl_core.families import find_preset
from dsctl_core.version import __version__

CARD = "README.md"
REQUIRED = "required"  # what stands for the default of an input that has none


def card_text(name: str, about: Mapping[str, str], inputs: Mapping[str, str], example: Mapping[str, Any]) -> str:
    """Return a model card with the fields that hubs read on top.

    `about` has "license" and, where they are known, "base_model" and "steps"; `inputs` has each input's default.
    """
    base = about.get("base_model")
    repository = published_as(base)
    head = ["---", f"license: {json.dumps(about['license'])}", "library_name: dsctl"]
    head += [f"base_model: {json.dumps(repository)}"] if repository else []
    head += ["tags: [template]", "---"]
    rows = [f"| `{each}` | {default if default == REQUIRED else f'`{default}`'} |" for each, default in inputs.items()]
    trained = f", trained for {about['steps']} steps" if "steps" in about else ""
    for_what = f"`{base}`" + (f" ({repository})" if repository else "") if base else "a base model"
    return "\n".join(
        [
            *head,
            "",
            f"# {name}",
            "",
            f"A template model for {for_what}{trained}. Packed with dsctl {__version__}.",
            "",
            "## Inputs",
            "",
            *(["| input | default |", "|---|---|", *rows] if rows else ["It takes none."]),
            "",
            "## Use",
            "",
            "`model.py` is code: read it before you trust it.",
            "",
            "```sh",
            infer_line(base, f"path/to/{name}", example),
            "```",
            "",
        ]
    )


def infer_line(base: str | None, template: str, example: Mapping[str, Any]) -> str:
    """Return the command that makes a picture with the template at `template`."""
    words = ["dsctl", "infer", "--model", base or "MODEL", "--prompt", "a cat", "--template", template]
    words += ["--trust-template"]
    words += ["--template-inputs", json.dumps(dict(example))]
    return shlex.join(words)


def published_as(base: str | None) -> str | None:
    """Return the repository of the preset called `base`, if it is one that has one."""
    try:
        return None if base is None else find_preset(base)[1].model_id
    except UsageError:
        return None


def public_name(base: str | None) -> str | None:
    """Return how to call a base model to others: a preset's name as it is, of a folder its last part alone."""
    return None if not base else Path(base).name
