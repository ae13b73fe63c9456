"""Find the folder of a template: a local folder, or a repository on a hub."""

from __future__ import annotations

from pathlib import Path

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.errors import DsctlError

CODE = "model.py"


def config_of(source: str) -> ModelConfig:
    """Parse "DIR", "OWNER/NAME:" or "OWNER/NAME@REVISION"; an existing folder takes precedence."""
    path = Path(source).expanduser()
    if path.exists():
        return ModelConfig(path=path)
    name = source.removesuffix(":")
    on_a_hub = source.endswith(":") or "@" in source
    if not on_a_hub or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise DsctlError(
            f"the template {source} does not exist", hint="check the path; write a repository on a hub as OWNER/NAME:"
        )
    return ModelConfig(model_id=name)


def folder_of(config: ModelConfig) -> Path:
    """Return the folder of a template, after downloading it if it is on a hub.

    Raises `DsctlError` if it is not a folder with a model.py.
    """
    paths = config.resolve()
    folder = paths[0]
    if len(paths) > 1 or not folder.is_dir():
        raise DsctlError(f"{folder} is not the folder of a template", hint=f"use the folder that contains {CODE}")
    if not (folder / CODE).is_file():
        raise DsctlError(
            f"{folder} is not a template: it has no {CODE}",
            hint=f"use a folder with a {CODE} that defines TEMPLATE_MODEL",
        )
    return folder
