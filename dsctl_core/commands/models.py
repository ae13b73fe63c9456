"""`dsctl models list` and `dsctl models show`: what can be named with --model, and its units as a graph.

Only the graph needs torch, which is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.checkpoint.defaults import folder_defaults
from dsctl_core.checkpoint.identify import class_of
from dsctl_core.families import families, find_preset, identify_folder
from dsctl_core.family import Component, ControlNet, Family, Preset
from dsctl_core.gc_pause import paused_gc
from dsctl_core.options import ModelsShowOptions

if TYPE_CHECKING:
    from dsctl_core.stages.split import Stages
    from dsctl_core.units import PipelineUnit


def list_models() -> dict[str, Any]:
    """Return the `families` (name, title) and the `presets` (name, family, summary, path, model_id)."""
    known = list(families().values())
    return {
        "families": [{"name": family.name, "title": family.title} for family in known],
        "presets": [_preset(family, preset) for family in known for preset in family.presets],
    }


def _preset(family: Family, preset: Preset) -> dict[str, Any]:
    path = preset.local_path()
    return {
        "name": preset.name,
        "family": family.name,
        "summary": preset.summary,
        "path": str(path) if path else None,
        "model_id": preset.model_id,
        "download_bytes": download_bytes(family, preset),
        "license": preset.license,
    }


def download_bytes(family: Family, preset: Preset) -> int | None:
    """Return the bytes of the files of a preset's weights, 0 for an embedded one; None if they are not known."""
    if preset.model_id is None:
        return 0
    sizes = family.stored_bytes(preset)
    return None if sizes is None else sum(sizes.values())


def least_memory(family: Family, preset: Preset) -> dict[str, int] | None:
    """Return the bytes of the weights that are in memory at once in each stage, in bfloat16; None if not known.

    `encode` are all components but the denoisers, `train` the largest denoiser, to which a LoRA adds little. Gradients,
    the optimizer's state and activations come on top: a dry run counts those.
    """
    sizes = family.weight_bytes(preset)
    if sizes is None:
        return None
    parts = family.parts(family.component_files(preset), family.preset_index(preset))
    names = [denoiser.name for denoiser in parts.denoisers]
    encoders = {name: size for name, size in sizes.items() if name not in names}
    return {"encode": sum(encoders.values()), "train": max(sizes[name] for name in names)}


def show_model(options: ModelsShowOptions) -> dict[str, Any]:
    """Return what a preset, a family or a model folder is; of a family, what belongs to a preset is None.

    Raises DsctlError for a name that nothing has, and for a folder that is no model.
    """
    family, preset, path = find_model(options.name)
    return {
        "name": options.name,
        "family": family.name,
        "title": family.title,
        "summary": preset.summary if preset else None,
        "path": str(path) if path else None,
        "model_id": preset.model_id if preset else None,
        "download_bytes": download_bytes(family, preset) if preset else None,
        "license": preset.license if preset else None,
        "gated": preset.gated if preset else None,
        "memory": least_memory(family, preset) if preset else None,
        "components": [_component(each, preset, path) for each in family.components if _is_there(each, preset, path)],
        "presets": [each.name for each in family.presets],
        "controlnets": [_controlnet(kind) for kind in family.controlnets],
        "defaults": _defaults(family, preset, path),
        "own_part": list(family.own_modules) or None,
        "lora_targets": list(family.lora_targets),
        "division_factor": family.division_factor,
    }


def show_graph(options: ModelsShowOptions) -> dict[str, Any]:
    """Return which units of the model run once and which at every step, when `trainable_models` are trained."""
    family, _, _ = find_model(options.name)
    return {"name": options.name, "family": family.name, **describe_stages(family, options.trainable_models)}


def find_model(name: str) -> tuple[Family, Preset | None, Path | None]:
    """Return the family, the preset and the folder of `name`, which is a preset, a family or a model folder."""
    if "/" in name or "\\" in name or Path(name).is_dir():
        return identify_folder(Path(name)), None, Path(name)
    presets = [preset.name for family in families().values() for preset in family.presets]
    if name in families() and name not in presets:
        return families()[name], None, None
    family, preset = find_preset(name)
    return family, preset, preset.local_path()


def _controlnet(kind: ControlNet) -> dict[str, Any]:
    """Return the name of a kind of control networks, what it reads, and its published weights."""
    presets = [{"name": each.name, "summary": each.summary, "model_id": each.model_id} for each in kind.presets]
    return {"name": kind.name, "summary": kind.summary, "reads": list(kind.columns), "presets": presets}


def _defaults(family: Family, preset: Preset | None, path: Path | None) -> dict[str, Any]:
    if preset is None and path is not None:
        return folder_defaults(family, path)
    return {**family.defaults, **(preset.defaults if preset else {})}


def _is_there(component: Component, preset: Preset | None, path: Path | None) -> bool:
    """Return whether a model has the component, which may be optional; a family has all of its components."""
    if preset is not None and preset.model_id is not None:
        return not component.optional or component.name in preset.files
    return path is None or not component.optional or (path / component.folder).is_dir()


def _component(component: Component, preset: Preset | None, path: Path | None) -> dict[str, Any]:
    own = None if path is None else path / component.folder
    place = preset.shared_paths().get(component.name, own) if preset else own
    return {
        "name": component.name,
        "folder": component.folder,
        "class": f"{component.library}.{_class_name(component, place)}",
        "path": str(place) if place else None,
        "files": preset.files.get(component.name) if preset else None,
        "model_id": preset.repository(component.name) if preset and preset.model_id else None,
    }


def _class_name(component: Component, place: Path | None) -> str:
    return class_of(place) if place is not None and place.is_dir() else " or ".join(component.class_names)


def describe_stages(family: Family, trainable: Sequence[str]) -> dict[str, Any]:
    """Return the two stages of training `trainable` on the task sft; no weights are needed for it."""
    for name in trainable:
        family.component(name.split(".")[0])
    with paused_gc():
        import torch

        from dsctl_core.losses import find_loss
        from dsctl_core.stages.split import PER_STEP_INPUTS, plan_stages, read_by_loss
        from dsctl_core.training.model.open import empty_pipeline_of_family
    pipe = empty_pipeline_of_family(family, torch.float32, "cpu")
    loss = find_loss("sft")
    stages = plan_stages(pipe, loss, trainable)
    made = {name for unit in pipe.units for name in unit.output_params}
    return {
        "task": loss.task,
        "trainable": list(trainable),
        "once": [_unit(unit) for unit in stages.split.once],
        "every_step": [_unit(unit) for unit in stages.split.every_step],
        "model_fn": {"components": list(pipe.in_iteration_models), "reads": sorted(read_by_loss(pipe, loss) & made)},
        "new_at_every_step": [name for name in PER_STEP_INPUTS if name not in loss.requires],
        "kept": sorted(
            {name for group in stages.groups for name in group.keeps}
            | (_required(stages) - made - set(PER_STEP_INPUTS))
            | (set(loss.requires) - made)
        ),
        "first_components": list(stages.first_components),
        "second_components": list(stages.second_components),
    }


def _unit(unit: PipelineUnit) -> dict[str, Any]:
    return {
        "unit": type(unit).__name__,
        "reads": list(unit.input_params),
        "writes": list(unit.output_params),
        "components": list(unit.onload_model_names),
    }


def _required(stages: Stages) -> set[str]:
    """Return what units of every step cannot do without; what no unit makes of it comes from the row itself."""
    return {name for unit in stages.split.every_step for name in unit.required}
