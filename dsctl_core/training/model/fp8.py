"""Find the component that a part of --fp8-models is: by its name, or by where its weights are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dsctl_core.checkpoint.load import find_component_paths
from dsctl_core.errors import UsageError
from dsctl_core.options.template import MODEL as TEMPLATE

if TYPE_CHECKING:
    from dsctl_core.checkpoint.model_config import ModelConfig
    from dsctl_core.families.resolve import ResolvedModel


def component_at(resolved: ResolvedModel, part: str) -> str:
    """Return the name of the component that `part` names.

    `part` is "vae", or a location as in `--model-paths` and `--model-id-with-origin-paths`: a path, or
    "OWNER/NAME:PATTERN". Raises UsageError for a component that the family does not have, for a module inside of one,
    and for weights that are not of this model.
    """
    if not any(mark in part for mark in ("/", "\\", ":")) and not part.endswith(".safetensors"):
        known = [component.name for component in resolved.family.components]
        if part.split(".")[0] in known and part not in known:
            raise UsageError(
                f"--fp8-models names {part!r}, a part of a component", hint=f"name all of it: {part.split('.')[0]}"
            )
        return part if part == TEMPLATE else resolved.family.component(part).name
    by_folder = {component.folder: component.name for component in resolved.family.components}
    for config in resolved.model_configs:
        found = _at_id(config, part) if config.path is None else _at_path(config, part)
        if found is not None:
            named = find_component_paths(resolved.family, [config]).components if found not in by_folder else {}
            return by_folder.get(found) or next(iter(named))
    names = ", ".join(by_folder.values())
    raise UsageError(
        f"--fp8-models names {part!r}, which is not among the weights of {resolved.label}",
        hint=f"write it as it is written for the model, or by its name: {names}",
    )


def _at_id(config: ModelConfig, part: str) -> str | None:
    """Return the folder in the repository of `config` if `part`, "OWNER/NAME:PATTERN", has weights of it, else None."""
    model_id, _, pattern = part.partition(":")
    folder, own = pattern.rpartition("/")[0], (config.origin_file_pattern or "").rpartition("/")[0]
    same = model_id.partition("@")[0] == config.repository[0] and folder == own
    return folder if same else None


def _at_path(config: ModelConfig, part: str) -> str | None:
    """Return the folder of the component at the path `part` if `config` has its weights, else None."""
    paths = config.path if isinstance(config.path, list) else [config.path]
    wanted = Path(part).absolute()
    for path in (Path(str(each)).absolute() for each in paths):
        if path == wanted:
            return path.name if path.is_dir() else path.parent.name
        if path.is_dir() and wanted.is_relative_to(path) and wanted.exists():
            inside = wanted.relative_to(path).parts
            return inside[0] if (path / inside[0]).is_dir() else path.name
    return None
