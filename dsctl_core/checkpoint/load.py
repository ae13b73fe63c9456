"""Load the components of a pipeline strictly: missing, unexpected or mismatched weights are errors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.checkpoint.build import checked_build, component_class
from dsctl_core.checkpoint.defaults import folder_defaults
from dsctl_core.checkpoint.finite import refuse_unusable_weights
from dsctl_core.checkpoint.identify import class_of, identify_component, is_original, is_single_file, weight_files
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.checkpoint.model_index import read_index
from dsctl_core.checkpoint.quantized import stored_in
from dsctl_core.checkpoint.readers import Readers
from dsctl_core.checkpoint.schedule import read_schedule
from dsctl_core.checkpoint.single_file import identify_single_file, load_single_file, published_config
from dsctl_core.checkpoint.weight_set import find_weights
from dsctl_core.errors import DsctlError
from dsctl_core.family import Component, Family, ModelParts, Schedule
from dsctl_core.files.json import read_json
from dsctl_core.readable import counted

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass
class LoadedComponents:
    """The loaded parts of a pipeline. `models` has only the components that were requested.

    `defaults` are the default option values of the model, such as its size and its number of steps.
    """

    models: dict[str, nn.Module]
    readers: Readers
    schedule: Schedule
    parts: ModelParts
    defaults: dict[str, Any]


@dataclass
class ComponentPaths:
    """The paths of components, readers and schedule; a component is a folder, or a single file without a config.

    `index` is the content of the model_index.json in `folder`, if the model is a whole folder in diffusers layout.
    """

    components: dict[str, Path]
    readers: dict[str, Path] = field(default_factory=dict)
    schedule: Path | None = None
    index: dict[str, Any] | None = None
    folder: Path | None = None


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


def parts_of(family: Family, places: ComponentPaths, index: Mapping[str, Any] | None = None) -> ModelParts:
    """Return the parts of the model at `places`; its kind follows from the config of the denoiser.

    `index` is the model_index.json of single components, if it is known.
    """
    config = None
    if family.config_kind is not None:
        denoisers = (places.components.get(name) for name in family.denoiser_names())
        path = next(filter(None, denoisers), None)
        config = None if path is None else config_of(family, path)
    return family.parts(places.components, index if places.index is None else places.index, config)


def config_of(family: Family, path: Path) -> dict[str, Any]:
    """Return the config of the denoiser at `path`: its config.json, or that of the published model of its shapes."""
    component = identify_single_file([family], path)[1] if is_single_file(path) else identify_component(family, path)
    if not has_own_config(component, path):
        return published_config(family, component, path)
    return read_json(path / "config.json")


def require_configs(family: Family, places: ComponentPaths) -> None:
    """Raise DsctlError for a component whose sizes are in no config.json that diffusers or transformers reads."""
    for name, place in places.components.items():
        if not has_own_config(family.component(name), place):
            stands = f"the single file {place}, which no config.json stands beside"
            raise DsctlError(
                f"the {name} is {stands if place.is_file() else f'in {place}, in the layout of its original release'}",
                hint="give a model folder in diffusers layout",
            )


def has_own_config(component: Component, path: Path) -> bool:
    """Return whether the sizes of `component` at `path` are in a config.json of diffusers or transformers."""
    return path.is_dir() and not is_original(component, path)


def _add_whole_folder(family: Family, folder: Path, places: ComponentPaths) -> None:
    places.index, places.folder = read_index(family, folder), folder
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
    on_host: Collection[str] = (),
    in_parts: Collection[str] = (),
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
        on_host: Names of components that stay in main memory, on which something is done before they are moved.
        in_parts: Names of components that are divided between processes: each stays in main memory, mapped from its
            files, and the values are checked where they are divided, by each process its own.
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
    parts = parts or parts_of(family, places)
    waiting = {denoiser.name for denoiser in parts.denoisers[1:]}
    models = {}
    for component in family.components:
        folder = places.components.get(component.name)
        if folder is None or (only is not None and component.name not in only):
            continue
        dtype = (component_dtypes or {}).get(component.name, torch_dtype)
        own = has_own_config(component, folder)
        loaded = load_component(component, folder, dtype) if own else load_single_file(family, component, folder, dtype)
        models[component.name] = loaded.to("cpu" if component.name in (*waiting, *on_host, *in_parts) else device)
        refuse_unusable_weights(loaded, weight_files(folder), folder, values=component.name not in in_parts)
    readers = Readers(family, {name: path for name, path in places.readers.items() if name in used})
    found = read_schedule(schedule or family.schedule, places.schedule)
    defaults = dict(family.defaults) if places.folder is None else folder_defaults(family, places.folder)
    return LoadedComponents(models, readers, found, parts, defaults)


def load_component(component: Component, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load one component from `folder`, in `dtype`, frozen and in evaluation mode.

    Raises DsctlError unless the files hold exactly the tensors of the model.
    """
    from dsctl_core.memory.dtypes import declare_float32_parts

    cls: Any = with_float32_parts(component_class(component, folder), component.float32_parts)
    form = stored_in(folder)
    if form is not None:
        from dsctl_core.checkpoint.packed import load_packed

        return load_packed(component, folder, cls, dtype, form)
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    # The libraries name this argument differently, and warn of deprecation for the other name.
    options["dtype" if component.library == "transformers" else "torch_dtype"] = dtype
    options["variant"] = find_weights(folder).variant
    files = weight_files(folder)
    with checked_build(component, folder, cls, files):
        model, info = cls.from_pretrained(str(folder), **options)
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
                f"{folder} {verb} {counted(len(names), 'weight')}{tail}, {names[0]} first",
                hint="its config.json and its weights should come from one place",
            )
    if info.get("error_msgs"):
        raise DsctlError(f"{folder}: {info['error_msgs'][0]}", hint="download the model again")
