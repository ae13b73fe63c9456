"""Write the model card (README.md) of a packed template: its base model, its inputs, and how to use it."""

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
REQUIRED = "required"  # shown as the default of an input without one


def card_text(name: str, metadata: Mapping[str, str], inputs: Mapping[str, str], example: Mapping[str, Any]) -> str:
    """Return the text of a model card, with the fields that hubs read in its YAML header.

    `metadata` has "license" and, if known, "base_model" and "steps". `inputs` has the default of each input as text, or
    `REQUIRED`. `example` are the inputs in the example command.
    """
    base = metadata.get("base_model")
    repository = repository_of(base)
    head = ["---", f"license: {json.dumps(metadata['license'])}", "library_name: dsctl"]
    head += [f"base_model: {json.dumps(repository)}"] if repository else []
    head += ["tags: [template]", "---"]
    rows = [f"| `{each}` | {default if default == REQUIRED else f'`{default}`'} |" for each, default in inputs.items()]
    trained = f", trained for {metadata['steps']} steps" if "steps" in metadata else ""
    base_model = f"`{base}`" + (f" ({repository})" if repository else "") if base else "a base model"
    return "\n".join(
        [
            *head,
            "",
            f"# {name}",
            "",
            f"A template model for {base_model}{trained}. Packed with dsctl {__version__}.",
            "",
            "## Inputs",
            "",
            *(["| input | default |", "|---|---|", *rows] if rows else ["It has none."]),
            "",
            "## Use",
            "",
            "`model.py` is code that runs on your machine: read it before you trust it.",
            "",
            "```sh",
            infer_line(base, f"path/to/{name}", example),
            "```",
            "",
        ]
    )


def infer_line(base: str | None, template: str, example: Mapping[str, Any]) -> str:
    """Return the shell command that generates an image with the template at `template`."""
    words = ["dsctl", "infer", "--model", base or "MODEL", "--prompt", "a cat", "--template", template]
    words += ["--trust-template"]
    words += ["--template-inputs", json.dumps(dict(example))]
    return shlex.join(words)


def repository_of(base: str | None) -> str | None:
    """Return the repository of the preset `base`; None if `base` is not a preset."""
    try:
        return None if base is None else find_preset(base)[1].model_id
    except UsageError:
        return None


def public_name(base: str | None) -> str | None:
    """Return the name of a base model without local paths: a preset name, or the last part of a folder."""
    return None if not base else Path(base).name
