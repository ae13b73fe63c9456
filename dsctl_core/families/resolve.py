"""Resolve a preset, a folder, files or hub ids to a family and the locations of its components."""

from __future__ import annotations

import functools
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dsctl_core.checkpoint.defaults import folder_defaults
from dsctl_core.checkpoint.identify import class_of, is_single_file
from dsctl_core.checkpoint.load import find_component_paths, parts_of
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.checkpoint.model_index import read_index
from dsctl_core.checkpoint.readers import load_reader
from dsctl_core.checkpoint.single_file import identify_single_file, single_file_owners
from dsctl_core.data.masks import MASK
from dsctl_core.data.sizes import ImageCropAndResize
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families import families, family_of_class, find_preset, identify_folder, pipeline_class
from dsctl_core.family import Family, ModelParts, Preset, Schedule
from dsctl_core.files.json import read_json
from dsctl_core.options.model import PATHS, parse_model_paths

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from typing_extensions import Self

    from dsctl_core.control.source import Loading
    from dsctl_core.pipeline import BasePipeline


class SideNetworkSource(Protocol):
    """A network in addition to the components of a model, with the information that training needs."""

    @property
    def name(self) -> str:
        """The component name of the network."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """The dataset columns that it reads."""
        ...

    @property
    def pictures(self) -> tuple[str, ...]:
        """Those of `columns` that hold pictures."""
        ...

    @property
    def label(self) -> str:
        """The network as the user specified it."""
        ...

    @property
    def identity(self) -> str:
        """A digest of its code and its frozen weights."""
        ...

    @property
    def on_disk(self) -> bool:
        """Whether its weights need no download."""
        ...

    def without_downloads(self) -> Self:
        """Return it limited to the disk: a missing file is an error instead of a download."""
        ...

    def attach(self, pipe: BasePipeline, how: Loading = "loaded", dtype: torch.dtype | None = None) -> None:
        """Add the network to `pipe`, in `dtype` (None: that of the pipeline).

        A template is always loaded: its units call it.
        """

    def about(self) -> dict[str, str]:
        """Return the metadata for files that are trained with it."""


@dataclass(frozen=True)
class ResolvedModel:
    """A resolved model: its family, the locations of its parts, and its default option values."""

    label: str  # the model as the user specified it
    family: Family
    preset: Preset | None
    model_configs: tuple[ModelConfig, ...]
    reader_configs: Mapping[str, ModelConfig] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    side_networks: tuple[SideNetworkSource, ...] = ()
    masked: bool = False  # whether training reads masks, which say what of a sample counts
    published: Preset | None = None  # published weights with the denoiser of this model, if single components are named
    index: Mapping[str, Any] | None = None  # the model_index.json of single components, if it is known

    @property
    def schedule(self) -> Schedule:
        """The published schedule of these weights; a scheduler_config.json in the model folder takes precedence."""
        known = self.preset or self.published
        own = None if known is None else known.schedule
        return own or self.family.schedule

    @functools.cached_property
    def parts(self) -> ModelParts:
        """The parts of this model: its components, including optional ones, and the ranges of its denoisers."""
        if self.preset is not None and self.preset.model_id is not None:
            return self.family.preset_parts(self.preset)
        if not self.family.differs:  # avoids a search for the files
            return self.family.parts()
        places = find_component_paths(self.family, self.model_configs)
        return parts_of(self.family, places, self.index)

    @functools.cached_property
    def known_index(self) -> Mapping[str, Any] | None:
        """The model_index.json of this model; None for single components of which none is known."""
        if self.preset is not None and self.preset.model_id is not None:
            return self.family.preset_index(self.preset)
        for config in self.model_configs:
            file = Path(config.path) / "model_index.json" if isinstance(config.path, str | Path) else None
            if file is not None and file.is_file():
                return read_json(file)
        return self.index

    def find_reader(self, name: str, *, download: bool = False) -> Any | None:
        """Load the reader `name`; return None if its files are not on this machine and there is no `download`."""
        try:
            folder = self._reader_folder(name, download)
        except DsctlError:
            return None
        return load_reader(self.family.reader(name), folder) if folder is not None else None

    def _reader_folder(self, name: str, download: bool) -> Path | None:
        config = self.reader_configs.get(name)
        if config is not None:
            found = (config if download else replace(config, skip_download=True)).resolve()[0]
            return found if found.is_dir() else found.parent
        folders = [Path(each.path) for each in self.model_configs if isinstance(each.path, str | Path)]
        inside = [folder / self.family.reader(name).folder for folder in folders]
        return next((folder for folder in inside if folder.is_dir()), None)

    @property
    def side_columns(self) -> tuple[str, ...]:
        """The dataset columns that the side networks read."""
        return tuple(column for each in self.side_networks for column in each.columns)

    @property
    def picture_columns(self) -> tuple[str, ...]:
        """Those of `side_columns` that hold pictures."""
        return tuple(column for each in self.side_networks for column in each.pictures)

    def with_additions(
        self,
        pipe: BasePipeline,
        how_of: Callable[[str], Loading],
        dtypes: Mapping[str, torch.dtype] | None = None,
    ) -> BasePipeline:
        """Return `pipe` after adding the side networks, and the unit of masks, if they are read.

        `how_of(name)` says how much of a network is loaded, and `dtypes` has the dtypes of networks that do not have
        that of the pipeline, by name.
        """
        for each in self.side_networks:
            each.attach(pipe, how_of(each.name), (dtypes or {}).get(each.name))
        if self.masked:
            from dsctl_core.media.masks import LossMask

            pipe.add_unit(LossMask(), [MASK])
        return pipe

    def edited_size(self, references: Sequence[Image], pixels: int) -> tuple[int, int]:
        """Return the (width, height) of an image of about `pixels` that is made of `references`.

        It is the size that the family defines, else it has the aspect ratio of the first reference.
        """
        sizes = [picture.size for picture in references]
        if self.family.edited_size is not None:
            return self.family.edited_size(self.parts, sizes, pixels)
        factor = self.parts.division_factor
        return ImageCropAndResize(None, None, pixels, factor, factor).target_size(*sizes[0])

    def check_component(self, name: str) -> None:
        """Raise UsageError if `name` is not a component of this model, or a module inside of one ("dit.blocks")."""
        if name.split(".")[0] not in [each.name for each in self.side_networks]:
            self.family.component(name.split(".")[0])

    def configs_of(self, components: Sequence[str] | None) -> list[ModelConfig]:
        """Return the locations of `components` (None: all).

        For a published model the others are left out, so that they need not be downloaded.
        """
        files = self.family.component_files(self.preset) if self.preset else {}
        if components is None or not files:
            return list(self.model_configs)
        named = zip(files, self.model_configs, strict=True)
        return [config for name, config in named if name in components]

    def load_pipeline(
        self,
        *,
        torch_dtype: torch.dtype,
        device: torch.device | str | None = None,
        only: Sequence[str] | None = None,
        component_dtypes: dict[str, torch.dtype] | None = None,
        on_host: Collection[str] = (),
        in_parts: Collection[str] = (),
    ) -> BasePipeline:
        """Load the pipeline with the components and side networks in `only` (None: all), and with what is added to it.

        See `BasePipeline.from_pretrained` for the parameters.
        """
        pipe = pipeline_class(self.family).from_pretrained(
            torch_dtype=torch_dtype,
            device=device,
            model_configs=self.configs_of(only),
            reader_configs=self.reader_configs,
            component_dtypes=component_dtypes,
            on_host=on_host,
            in_parts=in_parts,
            only=only,
            schedule=self.schedule,
            parts=self.parts,
            defaults=self.defaults,
        )
        return self.with_additions(
            pipe, lambda name: "loaded" if only is None or name in only else "absent", component_dtypes
        )


def resolve_model(
    model: str | None = None,
    model_paths: str | None = None,
    model_id_with_origin_paths: str | None = None,
    tokenizer_path: str | None = None,
) -> ResolvedModel:
    """Return the family and the locations of the specified model; weights are checked when they are loaded.

    Raises UsageError unless either `model`, or at least one of the next two, is specified.

    Args:
        model: A preset, or a folder in diffusers layout.
        model_paths: JSON list of files or of lists of shards.
        model_id_with_origin_paths: "ID:PATTERN,ID:PATTERN"; can be combined with `model_paths`.
        tokenizer_path: Location of the tokenizer, which overrides that of the model.
    """
    readers = {"tokenizer": ModelConfig.from_string(tokenizer_path)} if tokenizer_path else {}
    if (model is None) == (model_paths is None and model_id_with_origin_paths is None):
        raise UsageError(
            "either --model, or --model-paths and --model-id-with-origin-paths, is needed",
            hint="for example --model qwen-image",
        )
    if model is not None:
        return _from_folder(Path(model), readers) if _is_path(model) else _from_preset(model, readers)
    configs = _parse_paths(model_paths) if model_paths is not None else []
    parts = (model_id_with_origin_paths or "").split(",")
    configs += [ModelConfig.from_string(part.strip()) for part in parts if part.strip()]
    label = " ".join(text for text in (model_paths, model_id_with_origin_paths) if text)
    return _from_configs(label, configs, readers)


def _is_path(model: str) -> bool:
    return any(mark in model for mark in ("/", "\\")) or model.startswith((".", "~")) or Path(model).is_dir()


def _from_folder(folder: Path, readers: dict[str, ModelConfig]) -> ResolvedModel:
    family = identify_folder(folder.expanduser())
    config = ModelConfig(path=folder.expanduser())
    defaults = folder_defaults(family, folder.expanduser())
    return ResolvedModel(str(folder), family, None, (config,), readers, defaults)


def _from_preset(name: str, readers: dict[str, ModelConfig]) -> ResolvedModel:
    family, preset = find_preset(name)
    local = preset.local_path()
    if local is not None:
        shared = {part: ModelConfig(path=path) for part, path in preset.shared_paths().items()}
        components = [shared[each.name] for each in family.components if each.name in shared]
        configs: tuple[ModelConfig, ...] = (ModelConfig(path=local), *components)
        readers = {each.name: shared[each.name] for each in family.readers if each.name in shared} | readers
    else:
        configs = tuple(
            ModelConfig(model_id=preset.repository(part), origin_file_pattern=pattern)
            for part, pattern in family.component_files(preset).items()
        )
        readers = {**_published_readers(family, preset), **readers}
    return ResolvedModel(name, family, preset, configs, readers, {**family.defaults, **preset.defaults})


def _published_readers(family: Family, preset: Preset) -> dict[str, ModelConfig]:
    return {
        reader: ModelConfig(model_id=preset.repository(reader), origin_file_pattern=pattern)
        for reader, pattern in family.reader_files(preset).items()
    }


def _parse_paths(text: str) -> list[ModelConfig]:
    try:
        entries = parse_model_paths(text)
    except ValueError as error:
        raise UsageError(f"--model-paths is {reprlib.repr(text)}: {error}", hint=f"it takes {PATHS}") from error
    return [ModelConfig(path=entry) for entry in entries]


def _from_configs(label: str, configs: Sequence[ModelConfig], readers: dict[str, ModelConfig]) -> ResolvedModel:
    """Resolve a model from locations: the class of one of them identifies the family; readers are next to the first.

    Several families can have components of one class, so it is that of the first component that only one family has.
    The repository of published weights takes precedence over the class, and so does a model_index.json in the parent
    folder of the first component.
    """
    if not configs:
        raise UsageError(f"{label!r} names no model files", hint='write it as "ID:PATTERN,ID:PATTERN"')
    first = configs[0].resolve()[0]
    folder = first if first.is_dir() else first.parent
    if (folder / "model_index.json").is_file():
        family = identify_folder(folder)
        return ResolvedModel(label, family, None, tuple(configs), readers, folder_defaults(family, folder))
    published = _published_denoiser(configs)
    index: dict[str, Any] | None
    if published is not None:
        family, index = published[0], published[0].preset_index(published[1])
    else:
        family, index = _family_of([config.resolve()[0] for config in configs])
    beside = {reader.name: folder.parent / reader.folder for reader in family.readers}
    readers = {name: ModelConfig(path=path) for name, path in beside.items() if path.is_dir()} | readers
    preset, defaults = None, dict(family.defaults)
    if published is not None:
        preset = published[1]
        readers, defaults = {**_published_readers(family, preset), **readers}, {**defaults, **preset.defaults}
    return ResolvedModel(label, family, None, tuple(configs), readers, defaults, published=preset, index=index)


def _family_of(paths: Sequence[Path]) -> tuple[Family, dict[str, Any] | None]:
    """Return the family of the first component that only one family has, or else a family of the first component.

    The second result is the model_index.json beside that component, if it is of the family.
    """
    for path in paths if len(paths) > 1 else ():
        owners = _owners(path)
        if len(owners) == 1 and is_single_file(path):
            return owners[0], None
        if len(owners) == 1:
            return _family_of_component(path if path.is_dir() else path.parent)
    first = paths[0]
    if is_single_file(first):
        return identify_single_file(families().values(), first)[0], None
    return _family_of_component(first if first.is_dir() else first.parent)


def _owners(path: Path) -> list[Family]:
    """Return the families with a component of the class, or with the tensor names, of the one at `path`."""
    if is_single_file(path):
        return single_file_owners(families().values(), path)
    name = class_of(path if path.is_dir() else path.parent)
    return [f for f in families().values() if any(name in component.class_names for component in f.components)]


def _family_of_component(folder: Path) -> tuple[Family, dict[str, Any] | None]:
    """Return the family of the component in `folder`, and the model_index.json beside the folder if it is of it."""
    family = family_of_class(class_of(folder), folder)
    file = folder.parent / "model_index.json"
    index = read_json(file) if file.is_file() else {}
    for other in families().values():
        names = {name for component in other.components for name in component.class_names}
        if index.get("_class_name") in other.pipeline_classes and class_of(folder) in names:
            return other, read_index(other, folder.parent)
    return family, None


def _published_denoiser(configs: Sequence[ModelConfig]) -> tuple[Family, Preset] | None:
    """Return the family and the preset whose repository and folder one of `configs` names for a denoiser."""
    for config in configs:
        pattern, repository = config.origin_file_pattern, config.repository[0]
        for family in families().values() if pattern is not None else ():
            for preset in family.presets:
                denoisers = [preset.files[name] for name in family.denoiser_names() if name in preset.files]
                folders = {Path(files).parent for files in denoisers if preset.model_id == repository}
                if Path(pattern or "").parent in folders:
                    return family, preset
    return None
