"""Find the preset with the weights that another tool names by repository, also in the layout of the original code."""

from __future__ import annotations

import re
from pathlib import Path

from dsctl_core.errors import DsctlError
from dsctl_core.families import families, identify_folder
from dsctl_core.family import Family, Preset
from dsctl_core.imports.draft import Draft, Setting, Unfit

CONVERTED = re.compile(r"-diffusers$")  # ends the name of a repository that has an original one beside it


def preset_of_repository(name: str) -> Preset | None:
    """Return the preset whose weights are in the repository OWNER/NAME, or whose original weights are."""
    return next((preset for _, preset in _published() if _folded(preset.model_id or "") == _folded(name)), None)


def preset_of_folder(path: str) -> Preset | None:
    """Return the preset whose repository a folder has the name of."""
    name = _folded(Path(path.rstrip("/\\")).name)
    return next((preset for _, preset in _published() if _folded(preset.model_id or "").split("/")[1] == name), None)


def preset_of_ids(text: str) -> Preset | None:
    """Return the preset of the denoiser in "OWNER/NAME:PATTERN,...", if all of the weights are published ones.

    The denoiser is what is in no folder of another component. Text encoders and VAEs may come from the repository of
    another preset, as several presets share them.
    """
    pairs = [entry.strip().partition(":")[::2] for entry in text.split(",") if entry.strip()]
    known = {
        _folded(name) for _, each in _published() for name in (each.model_id, *each.from_repositories.values()) if name
    }
    if not pairs or any(_folded(repository) not in known for repository, _ in pairs):
        return None
    for family, preset in _published():
        others = {part.folder for part in family.components if part.name not in family.denoiser_names()}
        for repository, pattern in pairs:
            if _folded(repository) == _folded(preset.model_id or "") and pattern.split("/")[0] not in others:
                return preset
    return None


def family_of(model: str) -> tuple[Family, Preset | None] | None:
    """Return the family of a preset or of a model folder that is there, and the preset; None for anything else."""
    for family in families().values():
        for preset in family.presets:
            if preset.name == model:
                return family, preset
    try:
        return (identify_folder(Path(model)), None) if Path(model).is_dir() else None
    except DsctlError:
        return None


def set_model(draft: Draft, setting: Setting) -> None:
    """Set the model from a repository or a folder in diffusers layout, as most tools name it."""
    name = str(setting.value)
    preset = preset_of_repository(name)
    if preset is not None and not Path(name).is_dir():
        draft.set("model", preset.name, setting)
    elif Path(name).is_dir() or name.startswith((".", "/", "~")) or "\\" in name:
        draft.set("model", name if "/" in name or "\\" in name else f"./{name}", setting)
    else:
        raise Unfit('no preset has these weights; a folder in diffusers layout can be named as model = "./FOLDER"')


def _published() -> list[tuple[Family, Preset]]:
    return [(family, preset) for family in families().values() for preset in family.presets if preset.model_id]


def _folded(repository: str) -> str:
    return CONVERTED.sub("", repository.lower())
