"""Make the options of a draft fit one another and the model: what cannot be combined is taken out, with the reason."""

from __future__ import annotations

from typing import Any

from dsctl_core.data.masks import MASK
from dsctl_core.errors import UsageError
from dsctl_core.family import Family, Preset
from dsctl_core.imports.draft import Draft
from dsctl_core.imports.presets import family_of
from dsctl_core.options import TrainOptions
from dsctl_core.options.base import split_names
from dsctl_core.options.datasets import KEY
from dsctl_core.options.model_effects import PICTURES_ONLY

# What a run cannot do without: the option, a value to check the others with, and what to write.
NEEDED: tuple[tuple[str, Any, str], ...] = (
    ("model", "MODEL", "a preset that `dsctl models` lists, or a folder in diffusers layout"),
    ("dataset_base_path", "FOLDER", "the folder of the pictures or clips"),
    ("output_path", "FOLDER", "the folder for the results"),
    ("lora_rank", 32, "the rank of a LoRA, or trainable_models for whole components"),
)
INSTEAD = {
    "model": ("model_paths", "model_id_with_origin_paths", "from_cache"),
    "dataset_base_path": ("from_cache", KEY),
    "lora_rank": ("trainable_models", "lora_base_model", "lora_target_modules", "lora_checkpoint", "network"),
}


def settle(draft: Draft) -> TrainOptions:
    """Return the options of a draft, after those without effect or counterpart in dsctl were taken out of it.

    What is needed and not there is noted as missing, and stands in the result as a placeholder.
    """
    draft.lose(draft.aside.values(), "nothing to combine it with")
    draft.aside.clear()
    found = family_of(str(draft.options.get("model", "")))
    if found is not None:
        _fit_the_model(draft, *found)
    for option, _, what in NEEDED:
        if not any(name in draft.options for name in (option, *INSTEAD.get(option, ()))):
            draft.missing[option] = what
    placeholders = {option: value for option, value, _ in NEEDED if option in draft.missing}
    while True:
        fault = _fault({**placeholders, **draft.options})
        if fault is None:
            return TrainOptions.model_validate({**placeholders, **draft.options})
        draft.drop(_culprit(draft.options, placeholders, fault), fault.problem)


def _fault(values: dict[str, Any]) -> UsageError | None:
    try:
        TrainOptions.model_validate(values)
    except UsageError as error:
        return error
    return None


def _culprit(options: dict[str, Any], placeholders: dict[str, Any], fault: UsageError) -> str:
    """Return the option without which `options` have no fault, or else another one: the last of them that was set."""
    needed = {KEY, *(option for option, _, _ in NEEDED)}
    after: dict[str, UsageError | None] = {}
    for name in (name for name in reversed(options) if name not in needed):
        after[name] = _fault({**placeholders, **{other: options[other] for other in options if other != name}})
    mended = [name for name, other in after.items() if other is None]
    changed = [name for name, other in after.items() if other is not None and other.problem != fault.problem]
    for name in (*mended, *changed):
        return name
    raise fault


def _fit_the_model(draft: Draft, family: Family, preset: Preset | None) -> None:
    """Take out what the model does not take, and name its columns."""
    if family.time_division is None:
        for name in (name for name in PICTURES_ONLY.names if name in draft.options):
            draft.drop(name, f"it has no effect on {family.title}, which makes pictures, not clips")
        for table in draft.tables:
            for name in (name for name in PICTURES_ONLY.names if name in table.values):
                draft.drop_of_table(table, name, f"it has no effect on {family.title}, which makes pictures, not clips")
    elif "data_file_keys" not in draft.options:
        draft.default("data_file_keys", ["video"], f"{family.title} is trained on clips; write image for pictures")
    _known_inputs(draft, family)
    _known_layers(draft, family)
    _own_part(draft, family)
    if family.embedded_guidance and "sample_cfg_scale" in draft.options and _guided_by_input(preset):
        draft.drop("sample_cfg_scale", "this model takes its guidance as an input, which samples leave at its default")
    for name in ("height", "width"):
        value = draft.options.get(name)
        if value is not None and int(value) % family.division_factor:
            draft.drop(name, f"{value} is no multiple of {family.division_factor}")
            if (other := {"height": "width", "width": "height"}[name]) in draft.options:
                draft.drop(other, f"{name} has no counterpart, and one side alone is no size")
    for table in draft.tables:
        odd = [side for side in ("height", "width") if int(table.values.get(side, 0)) % family.division_factor]
        for name in ("height", "width") if odd else ():
            draft.drop_of_table(table, name, f"{odd[0]} is no multiple of {family.division_factor}")


def _guided_by_input(preset: Preset | None) -> bool:
    return preset is None or preset.defaults.get("cfg_scale", 1) == 1


def _known_inputs(draft: Draft, family: Family) -> None:
    names = draft.options.get("extra_inputs", ())
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    unknown = [name for name in names if name not in (*family.extra_inputs, MASK)]
    if unknown:
        known = ", ".join(family.extra_inputs) or "none"
        draft.drop("extra_inputs", f"{unknown[0]} is no input of {family.title}; its further inputs: {known}")


def _known_layers(draft: Draft, family: Family) -> None:
    """Leave out the layers of a LoRA where they are named as in the original code: the family's own are used then."""
    table, targets = family.original_names, draft.options.get("lora_target_modules")
    if targets is None or table is None:
        return
    names = [name.strip() for name in targets.split(",")] if isinstance(targets, str) else list(targets)
    ends = {name for old, new in table.single.items() for name in _ends(old) - _ends(new)}
    ends -= {name for new in table.single.values() for name in _ends(new)}
    if any(name in ends for name in names):
        draft.drop(
            "lora_target_modules",
            f"these are layers of the original code; without it the LoRA is on {', '.join(family.lora_targets)}",
        )


def _own_part(draft: Draft, family: Family) -> None:
    """Name the modules of a part that is a component in the original code, and the denoiser for a LoRA on it."""
    part, dit = family.own_part, family.denoisers[0].name
    if part is None or not part.called:
        return
    prefix = draft.options.get("remove_prefix_in_ckpt", "")
    if prefix == f"pipe.{part.called}.":
        draft.drop("remove_prefix_in_ckpt", f"the names in the file are those of the {dit} without it")
    trained = draft.options.get("trainable_models")
    if trained is not None:
        own = {part.called: family.own_modules}
        draft.options["trainable_models"] = [each for name in split_names(trained) for each in own.get(name, [name])]
    if draft.options.get("lora_base_model") == part.called:
        draft.options["lora_base_model"] = dit  # on whose part it is by default


def _ends(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[number:]) for number in range(len(parts))}
