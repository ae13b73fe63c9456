"""`dsctl merge-lora`: merge LoRAs into a copy of their model, or into one LoRA."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dsctl_core.checkpoint.defaults import DEFAULTS_FILE, write_defaults
from dsctl_core.checkpoint.identify import class_of, weight_files
from dsctl_core.checkpoint.load import ComponentPaths, find_component_paths, require_configs
from dsctl_core.checkpoint.quantized import INSTEAD, stored_in
from dsctl_core.checkpoint.stream import ChangeRows, tensor_shapes
from dsctl_core.checkpoint.trained_part import TrainedPart
from dsctl_core.commands.lora_files import Written, save
from dsctl_core.commands.lora_model import read_for, read_loras, resolve
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.resolve import ResolvedModel
from dsctl_core.files.atomic import atomic_folder, prepare_folder, unclaim, write_json
from dsctl_core.files.ownership import require_empty_folder
from dsctl_core.lora.merge import (
    ScaledLora,
    component_shapes,
    copy_file,
    matched,
    merge_into_one,
    merge_into_weights,
)
from dsctl_core.options.lora_tools import MergeLoraOptions
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.readable import readable_bytes
from dsctl_core.remote.files_output import files_output


def merge(options: MergeLoraOptions, progress: Progress | None = None) -> Written:
    """Merge LoRAs into a copy of the base, or into one LoRA."""
    if options.into == "base":
        return _merge_into_base(options, progress or NoProgress())
    files_output(options.output).require_new(options.output.name, "--output")
    paths = [each.path for each in options.lora]
    read, model = read_loras(paths, options)
    family = model.family_for(options.lora_format, paths)
    loras = [ScaledLora(lora, each.scale) for lora, each in zip(read, options.lora, strict=True)]
    components, kept = merge_into_one(loras, model.shapes, options.rank)
    about = _common_metadata([part.lora.metadata for part in loras])
    about["merged_from"] = json.dumps([[part.lora.path.name, part.scale] for part in loras])
    form, dtype = options.lora_format, options.lora_dtype
    return save(options.output, components, about, form, dtype, model.shapes, kept, family)


def _merge_into_base(options: MergeLoraOptions, progress: Progress) -> Written:
    require_empty_folder(options.output, "--output")
    resolved = resolve(options)
    loras = [ScaledLora(read_for(resolved, each.path), each.scale) for each in options.lora]
    places = find_component_paths(resolved.family, resolved.model_configs, resolved.reader_configs)
    require_configs(resolved.family, places)
    wanted = {component for part in loras for component in part.lora.components}
    trained = [TrainedPart.at(path, resolved.family, places.components) for path in options.trained_part]
    changed = {*wanted, *(part.component for part in trained)}
    _refuse_stored({name: place for name, place in places.components.items() if name in changed})
    shapes = {name: component_shapes(folder) for name, folder in places.components.items() if name in wanted}
    updates = matched(loras, shapes, allow_partial=options.allow_partial)
    replaced = _replaced(trained, places)
    made = [path for path in options.output.parents if not path.exists()]
    prepare_folder(options.output.parent)
    try:
        _refuse_full_disk(options.output.parent, places)
        with atomic_folder(options.output) as temporary:
            progress.start("Merging", sum(len(shapes[name]) for name in updates), unit="layer")
            _write_model(resolved, places, temporary, updates, replaced, lambda name: progress.advance(1))
            progress.finish()
    except BaseException:
        unclaim(made)
        raise
    facts = {
        "layers": {name: len(layers) for name, layers in updates.items()},
        "base": resolved.label,
        "loras": [f"{part.lora.path}:{part.scale:g}" for part in loras],
    }
    if trained:
        facts["trained_parts"] = {part.component: len(part.shapes) for part in trained}
    return Written(options.output, facts)


def _replaced(trained: Sequence[TrainedPart], places: ComponentPaths) -> dict[str, dict[str, ChangeRows]]:
    """Return the changes that trained parts make to the tensors of each component; check that these are there."""
    found: dict[str, dict[str, ChangeRows]] = {}
    for part in trained:
        folder = places.components[part.component]
        part.check({name: shape for file in weight_files(folder) for name, shape in tensor_shapes(file).items()})
        found.setdefault(part.component, {}).update(part.changes())
    return found


def _write_model(
    resolved: ResolvedModel,
    places: ComponentPaths,
    target: Path,
    updates: Any,
    replaced: Mapping[str, Mapping[str, ChangeRows]],
    tick: Callable[[str], None],
) -> None:
    """Write a complete model to the folder `target`: some components changed, and the others copied.

    `updates` are those of LoRAs, and `replaced` those of trained parts, both by component.
    """
    for component in resolved.family.components:
        folder = places.components.get(component.name)
        if folder is not None:
            own = (updates.get(component.name, {}), tick, replaced.get(component.name))
            merge_into_weights(folder, target / component.folder, *own)
    readers = [(places.readers.get(reader.name), reader.folder) for reader in resolved.family.readers]
    for folder, name in (*readers, (places.schedule, "scheduler")):
        if folder is not None:
            source = folder if folder.is_dir() else folder.parent
            (target / name).mkdir()
            for file in sorted(each for each in source.iterdir() if each.is_file() and not each.name.startswith(".")):
                copy_file(file, target / name / file.name)
    if resolved.preset is not None or (places.folder is not None and (places.folder / DEFAULTS_FILE).is_file()):
        write_defaults(target, resolved.defaults)
    index = {"_class_name": resolved.family.pipeline_classes[0], **(resolved.preset.index if resolved.preset else {})}
    whole = next(iter(places.components.values())).parent / "model_index.json"
    if whole.is_file():
        copy_file(whole, target / whole.name)
    else:
        parts: dict[str, list[str | None]] = {
            part.folder: [part.library, class_of(places.components[part.name])]
            for part in resolved.family.components
            if part.name in places.components
        }
        absent = (part for part in resolved.family.components if part.optional and part.folder not in parts)
        parts |= {part.folder: [None, None] for part in absent}
        write_json(target / "model_index.json", {**index, **parts})


def _refuse_full_disk(folder: Path, places: ComponentPaths) -> None:
    needed = sum(file.stat().st_size for place in places.components.values() for file in weight_files(place))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DsctlError(
            f"the merged model takes {readable_bytes(needed)}, but {folder} has {readable_bytes(free)} free",
            hint="free some disk space, or give an --output on another disk",
        )


def _refuse_stored(changed: Mapping[str, Path]) -> None:
    """Raise UsageError for a component, of those to be `changed` by their paths, whose files hold it in few bits."""
    for name, place in changed.items():
        form = stored_in(place)
        if form is not None:
            raise UsageError(
                f"the {name} is held in {form} by its files, so nothing can be merged into it", hint=INSTEAD
            )


def _common_metadata(headers: list[dict[str, str]]) -> dict[str, str]:
    names = ("family", "component", "base_model", "base_model_id", "base_weights", "kind")
    first = headers[0]
    return {name: first[name] for name in names if name in first and all(h.get(name) == first[name] for h in headers)}
