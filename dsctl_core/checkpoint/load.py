"""Load the components of a pipeline, strictly: every weight there, none left over, none invented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.checkpoint.build import component_class
from dsctl_core.checkpoint.identify import class_of, identify_component, weight_files
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.checkpoint.readers import Readers
from dsctl_core.checkpoint.schedule import read_schedule
from dsctl_core.checkpoint.single_file import identify_single_file, is_single_file, load_single_file
from dsctl_core.errors import DsctlError
from dsctl_core.family import Component, Family, ModelParts, Schedule
from dsctl_core.files.json import read_json

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass
class LoadedComponents:
    """What a pipeline is made of. A component that was not asked for is not in `models`."""

    models: dict[str, nn.Module]
    readers: Readers
    schedule: Schedule
    parts: ModelParts


@dataclass
class ComponentPaths:
    """Where everything is: a folder (or a single file without a config) for each component, readers, schedule.

    `index` is what the model_index.json of a whole folder says.
    """

    components: dict[str, Path]
    readers: dict[str, Path] = field(default_factory=dict)
    schedule: Path | None = None
    index: dict[str, Any] | None = None


def find_component_paths(
    family: Family, model_configs: Sequence[ModelConfig], reader_configs: Mapping[str, ModelConfig] | None = None
) -> ComponentPaths:
    """Find the folder of each component that `model_configs` name, and of the readers beside them.

    `reader_configs` say where readers are, by name, and go before what is found. Two places for one component are an
    error.
    """
    places = ComponentPaths({})
    for name, config in (reader_configs or {}).items():
        found = config.resolve()[0]
        places.readers[family.reader(name).name] = found if found.is_dir() else found.parent
    for config in model_configs:
        paths = config.resolve()
        if paths[0].is_dir() and (paths[0] / "model_index.json").is_file():
            _add_whole_folder(family, paths[0], places)
            continue
        if len(paths) == 1 and is_single_file(paths[0]):
            _add(places, identify_single_file([family], paths[0])[1].name, paths[0])
            continue
        folder = paths[0] if paths[0].is_dir() else paths[0].parent
        component = identify_component(family, folder)
        if not paths[0].is_dir():
            _check_shards(folder, paths)
        _add(places, component.name, folder)
    return places


def _add_whole_folder(family: Family, folder: Path, places: ComponentPaths) -> None:
    places.index = read_json(folder / "model_index.json")
    for component in family.components:
        left_out = component.optional and places.index.get(component.folder) == [None, None]
        if (folder / component.folder).is_dir() and not left_out:
            actual = identify_component(family, folder / component.folder)
            if actual != component:
                found = class_of(folder / component.folder)
                raise DsctlError(
                    f"{folder / component.folder} holds a {found}, not a {component.class_name}",
                    hint="restore the folder from where it came",
                )
            _add(places, component.name, folder / component.folder)
    for reader in family.readers:
        if (folder / reader.folder).is_dir():
            places.readers.setdefault(reader.name, folder / reader.folder)
    if (folder / "scheduler" / "scheduler_config.json").is_file():
        places.schedule = folder / "scheduler" / "scheduler_config.json"


def _add(places: ComponentPaths, name: str, folder: Path) -> None:
    if name in places.components:
        raise DsctlError(
            f"the {name} is given twice: {places.components[name]} and {folder}", hint="name each component once"
        )
    places.components[name] = folder


def _check_shards(folder: Path, paths: list[Path]) -> None:
    """Refuse a list of files that is not the whole set of shards in their folder."""
    whole = {path.resolve() for path in weight_files(folder)}
    given = {path.resolve() for path in paths}
    if given - whole:
        stranger = sorted(given - whole)[0]
        raise DsctlError(
            f"{stranger} is not one of the weight files of {folder}", hint="name the files of one component together"
        )
    if whole - given:
        raise DsctlError(
            f"{sorted(whole - given)[0]} belongs to the same component but was not given",
            hint="name all shards, or the folder",
        )


def load_components(
    family: Family,
    model_configs: Sequence[ModelConfig],
    reader_configs: Mapping[str, ModelConfig] | None = None,
    *,
    torch_dtype: torch.dtype,
    device: torch.device | str,
    component_dtypes: dict[str, torch.dtype] | None = None,
    only: Sequence[str] | None = None,
    schedule: Schedule | None = None,
    parts: ModelParts | None = None,
) -> LoadedComponents:
    """Load the components that `model_configs` name, frozen and in evaluation mode.

    Raises DsctlError for a missing, damaged, foreign or incomplete component, naming the file.

    Args:
        family: The family that they are of.
        model_configs: Where the components are.
        reader_configs: Where readers are, by name; those in a whole folder, or beside what it names, are found.
        torch_dtype: The dtype of the weights.
        device: Where they go; of several denoisers the first alone, the others wait in main memory.
        component_dtypes: The dtype of single components, by name.
        only: The components to load of those that are named (None: all).
        schedule: The schedule where there is no scheduler_config.json (None: the family's).
        parts: What the model consists of (None: what is named, with what model_index.json says of it).
    """
    # A reader may have to be downloaded, for which there is no reason unless a component uses it.
    used = {
        reader.name
        for reader in family.readers
        if only is None or any(component in only for component in reader.components)
    }
    configs = {name: config for name, config in (reader_configs or {}).items() if name in used}
    places = find_component_paths(family, model_configs, configs)
    parts = parts or family.parts(places.components, places.index)
    waiting = {denoiser.name for denoiser in parts.denoisers[1:]}
    models = {}
    for component in family.components:
        folder = places.components.get(component.name)
        if folder is None or (only is not None and component.name not in only):
            continue
        dtype = (component_dtypes or {}).get(component.name, torch_dtype)
        single = is_single_file(folder)
        loaded = (
            load_single_file(family, component, folder, dtype) if single else load_component(component, folder, dtype)
        )
        models[component.name] = loaded.to("cpu" if component.name in waiting else device)
    readers = Readers(family, {name: path for name, path in places.readers.items() if name in used})
    found = read_schedule(schedule or family.schedule, places.schedule)
    return LoadedComponents(models, readers, found, parts)


def load_component(component: Component, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Build one component from its folder: exactly the tensors in its files, in `dtype`, frozen, in eval mode."""
    from dsctl_core.memory.dtypes import declare_float32_parts

    weight_files(folder)
    cls: Any = with_float32_parts(component_class(component, folder), component.float32_parts)
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    # Each library names the argument its own way; the other spelling draws a deprecation warning.
    options["dtype" if component.library == "transformers" else "torch_dtype"] = dtype
    try:
        model, info = cls.from_pretrained(str(folder), **options)
    except (RuntimeError, ValueError, OSError) as error:
        raise DsctlError(
            f"{folder} does not fit a {cls.__name__}: {_first_line(error)}",
            hint="its config.json and its weights should come from one place",
        ) from error
    _refuse_misfits(folder, info)
    declare_float32_parts(model, component.float32_parts)
    return model.eval().requires_grad_(False)


def with_float32_parts(cls: Any, parts: Sequence[str]) -> Any:
    """Return the class `cls`, which keeps `parts` in float32 too when it loads weights."""
    if not parts:
        return cls
    kept = [*(cls._keep_in_fp32_modules or ()), *parts]
    return type(cls.__name__, (cls,), {"_keep_in_fp32_modules": kept, "__module__": cls.__module__})


def _refuse_misfits(folder: Path, info: dict[str, Any]) -> None:
    """Turn what the libraries only warn about into errors: weights missing, left over or misshapen."""
    for kind, verb in (("missing_keys", "lacks"), ("unexpected_keys", "has"), ("mismatched_keys", "misshapes")):
        names = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in info.get(kind) or ())
        if names:
            tail = ", which the model does not have" if kind == "unexpected_keys" else ""
            raise DsctlError(
                f"{folder} {verb} {len(names)} weights{tail}, {names[0]} first",
                hint="its config.json and its weights should come from one place",
            )
    if info.get("error_msgs"):
        raise DsctlError(f"{folder}: {info['error_msgs'][0]}", hint="download the model again")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
