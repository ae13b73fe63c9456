"""Load the components of a pipeline strictly: missing, unexpected or mismatched weights are errors."""

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
from dsctl_core.checkpoint.single_file import (
    identify_single_file,
    is_single_file,
    load_single_file,
    published_config,
)
from dsctl_core.errors import DsctlError
from dsctl_core.family import Component, Family, ModelParts, Schedule
from dsctl_core.files.json import read_json

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass
class LoadedComponents:
    """The loaded parts of a pipeline. `models` has only the components that were requested."""

    models: dict[str, nn.Module]
    readers: Readers
    schedule: Schedule
    parts: ModelParts


@dataclass
class ComponentPaths:
    """The paths of components, readers and schedule; a component is a folder, or a single file without a config.

    `index` is the content of the model_index.json, if the model is a whole folder in diffusers layout.
    """

    components: dict[str, Path]
    readers: dict[str, Path] = field(default_factory=dict)
    schedule: Path | None = None
    index: dict[str, Any] | None = None


def find_component_paths(
    family: Family, model_configs: Sequence[ModelConfig], reader_configs: Mapping[str, ModelConfig] | None = None
) -> ComponentPaths:
    """Return the paths of the components that `model_configs` name, and of the readers next to them.

    `reader_configs` are the locations of readers by name, and take precedence over those that are found. Raises
    DsctlError if a component is named twice.
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


def read_configs(family: Family, components: Mapping[str, Path]) -> dict[str, Mapping[str, Any]]:
    """Return the config of each component in `family.config_settings`, by name, if its path is in `components`.

    A single file has the config of the published size that it fits best.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for name, _ in family.config_settings:
        path = components.get(name)
        if path is not None and name not in found:
            single = is_single_file(path)
            found[name] = (
                published_config(family, family.component(name), path) if single else read_json(path / "config.json")
            )
    return found


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
    """Raise DsctlError unless `paths` are all shards of the component in `folder`, and nothing else."""
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

    Raises DsctlError, with the name of the file, for a component that is missing, damaged, incomplete or not of
    `family`.

    Args:
        family: The family of the model.
        model_configs: Paths or repositories of the components.
        reader_configs: Paths or repositories of readers by name, in addition to those found in a whole model folder.
        torch_dtype: Dtype of the weights.
        device: Device of the components; of several denoisers only the first is moved there, the others stay on CPU.
        component_dtypes: Dtype of single components by name; the others have `torch_dtype`.
        only: Names of the components to load (None: all in `model_configs`).
        schedule: Schedule to use without a scheduler_config.json (None: that of the family).
        parts: Parts of the model (None: derived from `model_configs` and the model_index.json).
    """
    # Readers that no requested component uses are left out, because they might have to be downloaded.
    used = {
        reader.name
        for reader in family.readers
        if only is None or any(component in only for component in reader.components)
    }
    configs = {name: config for name, config in (reader_configs or {}).items() if name in used}
    places = find_component_paths(family, model_configs, configs)
    parts = parts or family.parts(places.components, places.index, read_configs(family, places.components))
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
    """Load one component from `folder`, in `dtype`, frozen and in evaluation mode.

    Raises DsctlError unless the files hold exactly the tensors of the model.
    """
    from dsctl_core.memory.dtypes import declare_float32_parts

    weight_files(folder)
    cls: Any = with_float32_parts(component_class(component, folder), component.float32_parts)
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    # The libraries name this argument differently, and warn of deprecation for the other name.
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
    """Return a subclass of `cls` that also keeps `parts` in float32 when it loads weights; `cls` if there are none."""
    if not parts:
        return cls
    kept = [*(cls._keep_in_fp32_modules or ()), *parts]
    return type(cls.__name__, (cls,), {"_keep_in_fp32_modules": kept, "__module__": cls.__module__})


def _refuse_misfits(folder: Path, info: dict[str, Any]) -> None:
    """Raise DsctlError for missing, unexpected or mismatched weights, of which the libraries only warn."""
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
