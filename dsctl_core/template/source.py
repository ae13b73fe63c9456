"""Where a template is: a folder, or a repository on a hub."""

from __future__ import annotations

from pathlib import Path

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.errors import DsctlError

CODE = "model.py"


def config_of(source: str) -> ModelConfig:
    """Read "DIR", "OWNER/NAME:" or "OWNER/NAME@REVISION"; a folder of that spelling wins."""
    path = Path(source).expanduser()
    if path.exists():
        return ModelConfig(path=path)
    name = source.removesuffix(":")
    on_a_hub = source.endswith(":") or "@" in source
    if not on_a_hub or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise DsctlError(
            f"the template {source} does not exist", hint="check the path; a repository on a hub is written OWNER/NAME:"
        )
    return ModelConfig(model_id=name)


def folder_of(config: ModelConfig) -> Path:
    """Return the template's folder, downloaded first where it is on a hub; it has a model.py."""
    found = config.resolve()
    folder = found[0]
    if len(found) > 1 or not folder.is_dir():
        raise DsctlError(f"{folder} is no template's folder", hint=f"give the folder that holds {CODE}")
    if not (folder / CODE).is_file():
        raise DsctlError(
            f"{folder} is no template: it has no {CODE}",
            hint=f"give the folder whose {CODE} defines TEMPLATE_MODEL",
        )
    return folder
