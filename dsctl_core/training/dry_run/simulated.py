"""Build the pipeline of a model on fake tensors, from configs on the disk or from published ones, and encode a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image

from dsctl_core.checkpoint.build import empty_component, published_component
from dsctl_core.checkpoint.load import ComponentPaths, find_component_paths, require_configs
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.checkpoint.packed import pack_as_stored
from dsctl_core.checkpoint.quantized import stored_in
from dsctl_core.checkpoint.readers import Readers
from dsctl_core.data import UnifiedDataset
from dsctl_core.errors import DsctlError
from dsctl_core.families import pipeline_class
from dsctl_core.family import Component
from dsctl_core.losses import find_loss
from dsctl_core.memory.blocks import repeated_blocks
from dsctl_core.stages.plan_rows import has_pictures
from dsctl_core.stages.sample import Sample, pick, rounded
from dsctl_core.stages.split import Stages, run
from dsctl_core.training.dry_run.fake_tensors import (
    KnownAnswers,
    LiveBytes,
    Simulation,
    tensor_bytes,
)
from dsctl_core.training.dry_run.stand_ins import stand_in, use_tokens

if TYPE_CHECKING:
    from torch import nn

    from dsctl_core.families.resolve import ResolvedModel
    from dsctl_core.pipeline import BasePipeline


class SimulatedModel:
    """A model for a dry run: the parts on the disk, and those that are only known by their published configs."""

    def __init__(
        self, resolved: ResolvedModel, components: Sequence[str] | None, depth: int | None = None, longer: str = ""
    ) -> None:
        """Find the parts of `resolved` that `components` (None: all) name; nothing is downloaded.

        With `depth`, denoisers have only so many blocks of each kind, which takes seconds in place of minutes, and one
        more of the list of blocks called `longer`; `cut` then has the full lengths of the lists that were shortened.
        """
        self.resolved, self.depth, self.longer = resolved, depth, longer
        self.cut: dict[str, int] = {}
        self.missing: list[str] = []  # components that are not on the disk
        configs = self._on_disk(components)
        self.missing += [side.name for side in resolved.side_networks if not side.on_disk]
        published = resolved.preset is not None and resolved.preset.model_id is not None
        readers = {n: each for n, each in resolved.reader_configs.items() if not published or self._has(each)}
        self.missing_readers = [name for name in resolved.reader_configs if name not in readers]
        self.places: ComponentPaths = find_component_paths(resolved.family, configs, readers)
        require_configs(resolved.family, self.places)
        forms = {name: stored_in(place) for name, place in self.places.components.items()}
        self.stored = {name: form for name, form in forms.items() if form is not None}  # in few bits by their files

    def _on_disk(self, components: Sequence[str] | None) -> list[ModelConfig]:
        """Return the locations of the parts on the disk, and put the names of the others into `missing`."""
        family, preset = self.resolved.family, self.resolved.preset
        if preset is None or preset.model_id is None:
            return self.resolved.configs_of(components)
        found = []
        for name, config in zip(family.component_files(preset), self.resolved.model_configs, strict=True):
            if components is not None and name not in components:
                continue
            if self._has(config):
                found.append(config)
            elif family.published_config(name, preset.variant) is None:
                config.resolve()  # raises the error that says what to download
            else:
                self.missing.append(name)
        return found

    @staticmethod
    def _has(config: ModelConfig) -> bool:
        try:
            return bool(config.resolve())
        except DsctlError:
            return False

    @property
    def loaded(self) -> list[str]:
        """The names of the components, on the disk or not."""
        return [*self.places.components, *self.missing]

    def pipeline(
        self,
        simulation: Simulation,
        dtype: torch.dtype,
        dtype_of: Callable[[str], torch.dtype],
        without: Collection[str] = (),
    ) -> BasePipeline:
        """Return the pipeline on fake tensors, frozen, without the components in `without`.

        `dtype` is that of units, and `dtype_of(name)` that of the weights of a component.
        """
        family, readers = self.resolved.family, self._readers()
        models: dict[str, nn.Module] = {}
        denoisers = {denoiser.name for denoiser in self.resolved.parts.denoisers}
        for component in family.components:
            if component.name not in self.loaded or component.name in without:
                continue
            with simulation.building():
                model = self._empty(component)
            if self.depth is not None and component.name in denoisers:
                self.cut |= shorten(model, self.depth, self.longer)
            own = dtype_of(component.name)
            models[component.name] = simulation.take(model.eval().requires_grad_(False), own)
            if component.name in self.stored:
                place, form = self.places.components[component.name], self.stored[component.name]
                pack_as_stored(place, models[component.name], form, own)
        for reader in family.readers:
            if reader.kind == "tokenizer" and reader.name in self.missing_readers:
                for name in set(reader.components) & set(models):
                    use_tokens(models[name], readers.get(reader.name))
        about: dict[str, Any] = {"torch_dtype": dtype, "device": "cpu", "parts": self.resolved.parts}
        pipe = pipeline_class(family)(models, readers, self.resolved.schedule, **about).eval()
        pipe.scheduler.set_timesteps(training=True)
        dtypes = {side.name: dtype_of(side.name) for side in self.resolved.side_networks}
        self.resolved.with_additions(pipe, lambda name: "absent" if name in without else "empty", dtypes)
        for name in dtypes:
            if name in pipe.components:
                simulation.take(pipe.component(name))
        return pipe

    def _empty(self, component: Component) -> nn.Module:
        if component.name in self.places.components:
            return empty_component(component, self.places.components[component.name])
        preset = self.resolved.preset
        assert preset is not None, "only the parts of a published model can be missing"
        model = published_component(self.resolved.family, component, preset.variant)
        assert model is not None, "a component without a published config is not missing"
        return model

    def _readers(self) -> Readers:
        """Return the readers, loaded outside the measurement, with stand-ins for those that are not on the disk."""
        family, preset, loaded = self.resolved.family, self.resolved.preset, {}
        for name in self.missing_readers:
            reader = family.reader(name)
            assert preset is not None, "only the readers of a published model can be missing"
            found = stand_in(family, reader, preset.variant)
            if found is not None:
                loaded[name] = found
            elif set(reader.components) & set(self.loaded):
                raise self._needs_reader(name)
        readers = Readers(family, self.places.readers, loaded)
        for name in self.places.readers:
            readers.get(name)
        return readers

    def _needs_reader(self, name: str) -> DsctlError:
        preset, reader = self.resolved.preset, self.resolved.family.reader(name)
        assert preset is not None, "only the readers of a published model can be missing"
        return DsctlError(
            f"a dry run of {preset.name} needs its {name}, a few files, which is not on the disk",
            hint=f'dsctl download {preset.repository(name)} --include "{reader.folder}/*"',
        )


def shorten(model: nn.Module, depth: int, longer: str = "") -> dict[str, int]:
    """Keep the first `depth` entries of the lists of repeated blocks of `model`; return the lengths they had, by name.

    The list `longer` keeps one more. Lists that are no longer than `depth` stay as they are.
    """
    lengths = {}
    for name in dict.fromkeys(name.rpartition(".")[0] for name in repeated_blocks(model)):
        blocks: Any = model.get_submodule(name)
        if len(blocks) > depth:
            lengths[name] = len(blocks)
            del blocks[depth + (name == longer) :]
    return lengths


def largest(dataset: UnifiedDataset) -> int:
    """Return the position of the row with the most pixels."""
    sizes = [_product(bucket) for bucket in dataset.buckets()]
    return dataset.mixture.position_of(max(range(len(sizes)), key=sizes.__getitem__))


def _product(sizes: Any) -> int:
    """Return the number of pixels in nested lists of (width, height): the sum of their products."""
    if isinstance(sizes, int):
        return sizes
    if not isinstance(sizes, tuple):
        return 0
    if all(isinstance(each, int) for each in sizes):
        return math.prod(sizes)
    return sum(_product(each) for each in sizes)


@dataclass(frozen=True)
class EncodedRow:
    """One row encoded on fake tensors: the peak bytes without the weights, and its entry.

    `weights` are the bytes of the components that are in memory at once, where they are most.
    """

    peak: int
    entry: Sample
    weights: int


def encode_row(
    pipe: BasePipeline, stages: Stages, task: str, extra_inputs: Sequence[str], row: dict[str, Any], dtype: torch.dtype
) -> EncodedRow:
    """Encode one row on fake tensors."""
    live = LiveBytes()
    with KnownAnswers(), live, torch.no_grad():
        sides = find_loss(task).inputs_from_row(pipe, row, extra_inputs)
        # Groups that read files run together, as `passes_of` has it.
        reading = [each for each in stages.groups if has_pictures(pick(sides, each.reads), Image)]
        sides = run(stages.split.once, pipe, sides)
        entry = rounded(pick(sides, stages.needs), dtype)
    together = [reading, *([each] for each in stages.groups if each not in reading)]
    named = [dict.fromkeys(name for group in groups for name in group.components) for groups in together]
    return EncodedRow(live.peak, entry, max(_weights(pipe, list(names)) for names in named))


def _weights(pipe: BasePipeline, names: Sequence[str]) -> int:
    models = [getattr(pipe, name) for name in names if getattr(pipe, name) is not None]
    return sum(tensor_bytes([*model.parameters(), *model.buffers()]) for model in models)


def entry_bytes(entry: dict[str, Any]) -> int:
    """Return the bytes of an entry in a cache: its tensors, and the pixels of its pictures."""
    pictures = [
        each for value in entry.values() if isinstance(value, list) for each in value if isinstance(each, Image)
    ]
    pixels = sum(picture.width * picture.height * len(picture.getbands()) for picture in pictures)
    return pixels + tensor_bytes([value for value in entry.values() if isinstance(value, torch.Tensor)])
