"""`dsctl models list` and `dsctl models show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl import out
from dsctl.flags import takes
from dsctl_core.options import ModelsListOptions, ModelsShowOptions

if TYPE_CHECKING:
    from dsctl_core.family import Component, Family, Preset


@takes(ModelsListOptions)
def list_models(options: ModelsListOptions) -> None:
    """List the families and presets."""
    from dsctl_core.families import families

    known = list(families().values())
    presets = [(family, preset) for family in known for preset in family.presets]
    out.show(
        {
            "families": [{"name": family.name, "title": family.title} for family in known],
            "presets": [_described(family, preset) for family, preset in presets],
        },
        out.columns([("PRESET", "FAMILY", "WHAT IT IS"), *((p.name, f.name, p.summary) for f, p in presets)]),
    )


@takes(ModelsShowOptions)
def show_model(options: ModelsShowOptions) -> None:
    """Show one preset, family or model folder."""
    family, preset, path = _find(options.name)
    if options.graph:
        from dsctl_core.commands.models import describe_stages, drawn

        stages = describe_stages(family, options.trainable_models)
        out.show({"name": options.name, "family": family.name, **stages}, drawn(stages))
        return
    shown = {
        "name": options.name,
        "family": family.name,
        "title": family.title,
        "summary": preset.summary if preset else None,
        "path": str(path) if path else None,
        "model_id": preset.model_id if preset else None,
        "components": [_component(component, preset, path) for component in family.components],
        "presets": [each.name for each in family.presets],
        "defaults": {**family.defaults, **(preset.defaults if preset else {})},
        "lora_targets": list(family.lora_targets),
        "division_factor": family.division_factor,
    }
    out.show(shown, _lines(shown))


def _find(name: str) -> tuple[Family, Preset | None, Path | None]:
    """Return what `name` is: a preset, a family or a folder in diffusers layout."""
    from dsctl_core.families import families, find_preset, identify_folder

    if "/" in name or "\\" in name or Path(name).is_dir():
        return identify_folder(Path(name)), None, Path(name)
    presets = [preset.name for family in families().values() for preset in family.presets]
    if name in families() and name not in presets:
        return families()[name], None, None
    family, preset = find_preset(name)
    return family, preset, preset.local_path()


def _component(component: Component, preset: Preset | None, path: Path | None) -> dict[str, Any]:
    return {
        "name": component.name,
        "folder": component.folder,
        "class": f"{component.library}.{_class_name(component, path)}",
        "path": str(path / component.folder) if path else None,
        "files": preset.files.get(component.name) if preset else None,
        "model_id": preset.repository(component.name) if preset and preset.model_id else None,
    }


def _class_name(component: Component, path: Path | None) -> str:
    from dsctl_core.checkpoint.identify import class_of

    folder = None if path is None else path / component.folder
    return class_of(folder) if folder is not None and folder.is_dir() else " or ".join(component.class_names)


def _lines(shown: dict[str, Any]) -> list[str]:
    """Return what `shown` says as text, without what is not known."""
    plain = {name: value for name, value in shown.items() if name != "components" and value is not None}
    texts = {
        **plain,
        "presets": ", ".join(shown["presets"]),
        "defaults": ", ".join(f"{name} {value}" for name, value in shown["defaults"].items()),
        "lora_targets": ",".join(shown["lora_targets"]),
    }
    rows = [(name.replace("_", " "), str(value)) for name, value in texts.items()]
    parts = [(part["name"], part["class"], part["path"] or part["files"] or "") for part in shown["components"]]
    return [*out.columns(rows), "components", *out.columns(parts, indent=2)]


def _described(family: Family, preset: Preset) -> dict[str, Any]:
    path = preset.local_path()
    return {
        "name": preset.name,
        "family": family.name,
        "summary": preset.summary,
        "path": str(path) if path else None,
        "model_id": preset.model_id,
    }
