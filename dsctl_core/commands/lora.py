"""What `dsctl merge-lora` and `dsctl lora ...` do, from the options to the files."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsctl_core.checkpoint.identify import class_of, identify_component, weight_files
from dsctl_core.checkpoint.load import ComponentPaths, find_component_paths
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families import families, family_of_class, identify_folder
from dsctl_core.families.resolve import ResolvedModel, resolve_model
from dsctl_core.family import Component, Family
from dsctl_core.files.atomic import prepare_folder, sync_folder, unclaim, write_json
from dsctl_core.files.digest import weights_identity
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.lora.about import SPEC, with_model_spec
from dsctl_core.lora.algebra import RankTruncation, resize_layers
from dsctl_core.lora.extract import extract
from dsctl_core.lora.files import lora_weights, read_lora, save_lora, unnamed_layers
from dsctl_core.lora.formats import DENOISER, FORMATS, Layers, LoraFile, with_dots
from dsctl_core.lora.merge import (
    ScaledLora,
    component_shapes,
    copy_file,
    matched,
    merge_into_one,
    merge_into_weights,
)
from dsctl_core.lora.original import LAYOUTS, has_original_names
from dsctl_core.options.lora_tools import (
    LoraConvertOptions,
    LoraExtractOptions,
    LoraInfoOptions,
    LoraResizeOptions,
    MergeLoraOptions,
)
from dsctl_core.options.model import SomeModelOptions
from dsctl_core.progress import NoProgress, Progress


@dataclass(frozen=True)
class Written:
    """What a command wrote: the file or folder, and facts about it in the order in which they are worth telling."""

    output: Path
    facts: dict[str, Any] = field(default_factory=dict)


def component_names() -> tuple[str, ...]:
    """Return the names of all components of all families, which may stand in front of a LoRA's layers."""
    return tuple(dict.fromkeys(part.name for family in families().values() for part in family.components))


def merge(options: MergeLoraOptions, progress: Progress | None = None) -> Written:
    """Merge LoRAs into a copy of the base, or into one LoRA."""
    progress = progress or NoProgress()
    loras = [ScaledLora(read_lora(each.path, component_names()), each.scale) for each in options.lora]
    if options.into == "base":
        return _merge_into_base(options, loras, progress)
    refuse_existing(options.output)
    shapes = _base_shapes(options)
    _refuse_flat([part.lora for part in loras], shapes)
    families_named = {part.lora.metadata["family"] for part in loras if "family" in part.lora.metadata}
    if len(families_named) > 1:
        raise DsctlError(
            f"the LoRAs are for different families: {', '.join(sorted(families_named))}",
            hint="merge LoRAs of one model",
        )
    components, kept = merge_into_one(loras, shapes, options.rank)
    about = _common_metadata([part.lora.metadata for part in loras])
    about["merged_from"] = json.dumps([[part.lora.path.name, part.scale] for part in loras])
    return _save(options.output, components, about, options.lora_format, options.lora_dtype, shapes, kept)


def _merge_into_base(options: MergeLoraOptions, loras: list[ScaledLora], progress: Progress) -> Written:
    refuse_used_folder(options.output)
    resolved = _resolve(options)
    places = find_component_paths(resolved.family, resolved.model_configs, resolved.reader_configs)
    for name, place in places.components.items():
        if place.is_file():
            raise DsctlError(
                f"the {name} is the single file {place}, which no config.json stands beside",
                hint="give a model folder in diffusers layout",
            )
    wanted = {component for part in loras for component in part.lora.components}
    shapes = {name: component_shapes(folder) for name, folder in places.components.items() if name in wanted}
    updates = matched(loras, shapes, allow_partial=options.allow_partial)
    made = [path for path in options.output.parents if not path.exists()]
    prepare_folder(options.output.parent)
    temporary = options.output.with_name(f".{options.output.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        _refuse_full_disk(temporary.parent, places)
        count = sum(len(shapes[name]) for name in updates)
        progress.start("Merging", count)
        _write_model(resolved, places, temporary, updates, lambda name: progress.advance(1))
        progress.finish()
        if options.output.is_dir():
            options.output.rmdir()
        temporary.replace(options.output)
        sync_folder(options.output.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        unclaim(made)
        raise
    facts = {
        "layers": {name: len(layers) for name, layers in updates.items()},
        "base": resolved.label,
        "loras": [f"{part.lora.path}:{part.scale:g}" for part in loras],
    }
    return Written(options.output, facts)


def _write_model(
    resolved: ResolvedModel, places: ComponentPaths, target: Path, updates: Any, tick: Callable[[str], None]
) -> None:
    """Write a complete model folder in diffusers layout, the components in `updates` changed and the others copied."""
    target.mkdir()
    for component in resolved.family.components:
        folder = places.components.get(component.name)
        if folder is not None:
            merge_into_weights(folder, target / component.folder, updates.get(component.name, {}), tick)
    readers = [(places.readers.get(reader.name), reader.folder) for reader in resolved.family.readers]
    for folder, name in (*readers, (places.schedule, "scheduler")):
        if folder is not None:
            source = folder if folder.is_dir() else folder.parent
            (target / name).mkdir()
            for file in sorted(each for each in source.iterdir() if each.is_file() and not each.name.startswith(".")):
                copy_file(file, target / name / file.name)
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


def refuse_used_folder(folder: Path) -> None:
    """Raise a DsctlError if `folder` is a file, or holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DsctlError(f"{folder} is there already", hint="give another --output, or remove it")


def _refuse_full_disk(folder: Path, places: ComponentPaths) -> None:
    needed = sum(file.stat().st_size for place in places.components.values() for file in weight_files(place))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DsctlError(
            f"the merged model takes {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free",
            hint="free some disk space, or give an --output on another disk",
        )


def info(options: LoraInfoOptions) -> dict[str, Any]:
    """Return what there is to say about a LoRA."""
    lora = read_lora(options.file, component_names())
    file = lora_weights(options.file)
    tensors, _ = read_safetensors(file)
    layers = [layer for of in lora.components.values() for layer in of.values()]
    ranks, scales = sorted({layer.rank for layer in layers}), sorted({round(layer.scale, 6) for layer in layers})
    return {
        "file": str(options.file),
        "format": lora.format,
        "components": {name: len(of) for name, of in lora.components.items()},
        "ranks": ranks,
        "scales": scales,
        "dora": any(layer.magnitude is not None for layer in layers),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}),
        "parameters": sum(layer.down.numel() + layer.up.numel() for layer in layers),
        "bytes": file.stat().st_size,
        "metadata": lora.metadata,
    }


def convert(options: LoraConvertOptions) -> Written:
    """Write a LoRA in another format."""
    refuse_existing(options.output)
    lora, shapes = _read_for_writing(options.file, options)
    components = {name: with_dots(lora, name, shapes.get(name, ())) for name in lora.components}
    dtype = options.lora_dtype or _dtype_of(options.file)
    return _save(options.output, components, _kept_metadata(lora), options.to, dtype, shapes, None)


def resize(options: LoraResizeOptions) -> Written:
    """Write a LoRA at another rank."""
    refuse_existing(options.output)
    lora, shapes = _read_for_writing(options.file, options)
    parts = {name: resize_layers(with_dots(lora, name, shapes.get(name, ())), options.rank) for name in lora.components}
    components = {name: layers for name, (layers, _) in parts.items()}
    worst = min((kept for _, kept in parts.values()), key=lambda kept: kept.share)
    dtype = options.lora_dtype or _dtype_of(options.file)
    return _save(options.output, components, _kept_metadata(lora), options.lora_format, dtype, shapes, worst)


def refuse_existing(output: Path) -> None:
    """Raise a DsctlError if there is something at `output` already."""
    if output.exists():
        raise DsctlError(f"{output} is there already", hint="give another --output, or remove it")


def _read_for_writing(file: Path, options: SomeModelOptions) -> tuple[LoraFile, dict[str, dict[str, tuple[int, int]]]]:
    lora = read_lora(file, component_names())
    shapes = _base_shapes(options)
    _refuse_flat([lora], shapes)
    return lora, shapes


def extract_lora(options: LoraExtractOptions, progress: Progress | None = None) -> Written:
    """Write the LoRA that leads from one checkpoint to another."""
    progress = progress or NoProgress()
    refuse_existing(options.output)
    family, component, base = _component_at(options.base, options.component)
    tuned = options.tuned
    if tuned.is_dir() and (tuned / component.folder).is_dir():
        tuned = tuned / component.folder
    if not tuned.exists():
        raise DsctlError(f"{tuned} does not exist", hint="check the path")
    linear = linear_names(component, base)
    progress.start("Comparing", None)
    found = extract(
        base, tuned, linear, options.rank, options.target_modules, lambda name: progress.advance(1, tensor=name)
    )
    progress.finish()
    about = {"family": family.name, "component": component.name, "base_model": str(options.base)}
    about |= {"base_weights": weights_identity(weight_files(base)), "extracted_from": tuned.name}
    shapes = {component.name: component_shapes(base)}
    layers = {component.name: found.layers}
    written = _save(options.output, layers, about, options.lora_format, options.lora_dtype, shapes, found.kept)
    left_out = {"left_out": found.left_out} if found.left_out else {}
    return Written(written.output, {**written.facts, **left_out})


def _component_at(path: Path, name: str) -> tuple[Family, Component, Path]:
    if (path / "model_index.json").is_file():
        family = identify_folder(path)
        component = family.component(name)
        return family, component, path / component.folder
    if not path.is_dir():
        raise DsctlError(f"{path} is not a folder", hint="give a model folder, or the folder of one component")
    family = family_of_class(class_of(path), path)
    return family, identify_component(family, path), path


def linear_names(component: Component, folder: Path) -> list[str]:
    """Return the names of the linear layers of the component in `folder`, from its config.json alone."""
    import torch
    from torch import nn

    from dsctl_core.checkpoint.load import empty_component

    with torch.device("meta"):
        model = empty_component(component, folder)
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def _resolve(options: SomeModelOptions) -> ResolvedModel:
    return resolve_model(options.model, options.model_paths, options.model_id_with_origin_paths, options.tokenizer_path)


def _base_shapes(options: SomeModelOptions) -> dict[str, dict[str, tuple[int, int]]]:
    """Return the layers of the model that was named, by component; {} when none was."""
    if options.model is None and options.model_paths is None and options.model_id_with_origin_paths is None:
        return {}
    resolved = _resolve(options)
    places = find_component_paths(resolved.family, resolved.model_configs, resolved.reader_configs)
    return {name: component_shapes(folder) for name, folder in places.components.items()}


def _refuse_flat(loras: Iterable[LoraFile], shapes: dict[str, Any]) -> None:
    for lora in loras:
        if lora.flat and not shapes:
            raise UsageError(
                f"{lora.path} writes its layers' names without dots, so they can only be told from those of the model",
                hint="give --model too",
            )


def _original_names(
    about: dict[str, str], components: dict[str, Layers], shapes: dict[str, dict[str, tuple[int, int]]]
) -> str | None:
    """Return the layout of original names of the model that a LoRA is for, from its header, else from its layers."""
    if about.get("family") in families():
        return families()[about["family"]].original_names
    names = {*components.get(DENOISER, {}), *shapes.get(DENOISER, {})}
    return next((layout for layout in LAYOUTS if has_original_names(names, layout)), None)


def _unnamed(about: dict[str, str], components: dict[str, Layers]) -> str:
    """Return the denoiser that the layers are of, where the header says so and there is no other component."""
    family = families().get(about.get("family", ""))
    denoisers = () if family is None or len(components) > 1 else family.denoiser_names()
    return unnamed_layers(about.get("component", DENOISER), denoisers)


def _dtype_of(path: Path) -> str:
    tensors, _ = read_safetensors(lora_weights(path))
    found = {str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items() if not name.endswith("alpha")}
    return next(iter(found)) if len(found) == 1 and found <= {"float32", "bfloat16", "float16"} else "float32"


def _kept_metadata(lora: LoraFile) -> dict[str, str]:
    """Return the metadata that stays true when a LoRA is written anew: not the format, nor what follows from it."""
    gone = ("format", "format_of_keys", "lora_adapter_metadata", "rank", "alpha")
    return {key: value for key, value in lora.metadata.items() if key not in gone and not key.startswith(SPEC)}


def _common_metadata(headers: list[dict[str, str]]) -> dict[str, str]:
    names = ("family", "component", "base_model", "base_model_id", "base_weights", "kind")
    first = headers[0]
    return {name: first[name] for name in names if name in first and all(h.get(name) == first[name] for h in headers)}


def _save(
    output: Path,
    components: dict[str, Layers],
    about: dict[str, str],
    form: str,
    dtype: str,
    shapes: dict[str, dict[str, tuple[int, int]]],
    kept: RankTruncation | None,
) -> Written:
    is_folder = FORMATS[form].folder
    if is_folder == (output.suffix == ".safetensors"):
        wanted = "a folder, so its name does not end in .safetensors" if is_folder else "a file NAME.safetensors"
        raise UsageError(f"--output is {str(output)!r}, but the format {form} is {wanted}", hint="give another name")
    ranks = sorted({layer.rank for layers in components.values() for layer in layers.values()})
    noted = {**about, "kind": "lora", "rank": ",".join(map(str, ranks))}
    every = {f"{name}.{layer}": each for name, layers in components.items() for layer, each in layers.items()}
    prepare_folder(output.parent)
    title = output.stem
    known = shapes if shapes else None
    spec = with_model_spec(noted, title, every)
    original = _original_names(about, components, shapes)
    owner = _unnamed(about, components)
    save_lora(output, components, spec, form=form, dtype=dtype, shapes=known, original=original, unnamed=owner)
    facts: dict[str, Any] = {"format": form, "layers": len(every), "ranks": ranks}
    if kept is not None:
        facts["kept_energy"] = kept.share
        facts["worst_kept_energy"] = kept.worst_share
        facts["worst_layer"] = kept.worst_layer
    return Written(output, facts)
