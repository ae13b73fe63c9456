"""Share what the commands for LoRAs need: the model that a LoRA is for, and writing one with its metadata."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsctl_core.checkpoint.load import find_component_paths
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families import families
from dsctl_core.families.resolve import ResolvedModel, resolve_model
from dsctl_core.family import OriginalNames
from dsctl_core.files.atomic import prepare_folder
from dsctl_core.lora.about import with_model_spec
from dsctl_core.lora.algebra import RankTruncation
from dsctl_core.lora.files import read_lora, save_lora, unnamed_layers
from dsctl_core.lora.formats import DENOISER, FORMATS, Layers, LoraFile
from dsctl_core.lora.merge import component_shapes
from dsctl_core.lora.original import has_original_names, named_in
from dsctl_core.options.model import SomeModelOptions


@dataclass(frozen=True)
class Written:
    """The file or folder that a command wrote, and facts about it, the most important first."""

    output: Path
    facts: dict[str, Any] = field(default_factory=dict)


def component_names() -> tuple[str, ...]:
    """Return the names of all components of all families, which may stand in front of a LoRA's layers."""
    return tuple(dict.fromkeys(part.name for family in families().values() for part in family.components))


def open_lora(path: Path) -> LoraFile:
    """Return the LoRA at `path`, of whichever family it is."""
    return read_lora(path, component_names(), [family.original_names for family in families().values()])


def refuse_existing(output: Path) -> None:
    """Raise a DsctlError if there is something at `output` already."""
    if output.exists():
        raise DsctlError(f"{output} is there already", hint="give another --output, or remove it")


def resolve(options: SomeModelOptions) -> ResolvedModel:
    """Return the model that `options` name; a DsctlError if they name none, or none that is known."""
    return resolve_model(options.model, options.model_paths, options.model_id_with_origin_paths, options.tokenizer_path)


def base_shapes(options: SomeModelOptions) -> dict[str, dict[str, tuple[int, int]]]:
    """Return the layers of the model that was named, by component; {} when none was."""
    if options.model is None and options.model_paths is None and options.model_id_with_origin_paths is None:
        return {}
    resolved = resolve(options)
    places = find_component_paths(resolved.family, resolved.model_configs, resolved.reader_configs)
    return {name: component_shapes(folder) for name, folder in places.components.items()}


def refuse_flat(loras: Iterable[LoraFile], shapes: dict[str, Any]) -> None:
    """Raise a UsageError for a LoRA whose layers have names without dots, unless `shapes` has the model's layers."""
    for lora in loras:
        if lora.flat and not shapes:
            raise UsageError(
                f"{lora.path} writes its layers' names without dots, so they can only be told from those of the model",
                hint="give --model too",
            )


def save(
    output: Path,
    components: dict[str, Layers],
    about: dict[str, str],
    form: str,
    dtype: str,
    shapes: dict[str, dict[str, tuple[int, int]]],
    kept: RankTruncation | None,
) -> Written:
    """Write a LoRA and return what was written; a UsageError where `output` does not fit the format.

    Args:
        output: a file NAME.safetensors, or a folder for a format that is one.
        components: the layers by component and name.
        about: metadata for the header, without what follows from the layers.
        form: the format, a name in FORMATS.
        dtype: the precision of the tensors, such as "bfloat16".
        shapes: (rows, columns) of the layers of the model by component; {} when no model was named.
        kept: what cutting the rank has kept, to be told; None where nothing was cut.
    """
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


def _unnamed(about: dict[str, str], components: dict[str, Layers]) -> str:
    """Return the denoiser that the layers are of, where the header says so and there is no other component."""
    family = families().get(about.get("family", ""))
    denoisers = () if family is None or len(components) > 1 else family.denoiser_names()
    return unnamed_layers(about.get("component", DENOISER), denoisers)


def _original_names(
    about: dict[str, str], components: dict[str, Layers], shapes: dict[str, dict[str, tuple[int, int]]]
) -> OriginalNames | None:
    """Return the original names of the model that a LoRA is for, from its header, else from its layers."""
    if about.get("family") in families():
        return families()[about["family"]].original_names
    own = components.get(DENOISER, {})
    names = {*own, *shapes.get(DENOISER, {})}
    known = [family.original_names for family in families().values() if family.original_names is not None]
    whole = [layout for layout in known if own and named_in(own, layout) == len(own)]
    if whole:
        return max(whole, key=lambda layout: named_in(names, layout))
    return next((layout for layout in known if not layout.own_prefix and has_original_names(names, layout)), None)
