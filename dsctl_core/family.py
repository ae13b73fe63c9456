"""Describe a family of models: components, readers, denoisers, presets, schedule, LoRA targets. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Component:
    """One network of a family, and its folder in diffusers layout.

    An `optional` component is only part of some presets and model folders; units check `pipe.has(name)`. `library` is
    "transformers", "diffusers", or a module of the family whose classes derive from diffusers' `ModelMixin`.
    """

    name: str  # attribute of the pipeline: "dit", "vae", "text_encoder"
    folder: str  # sub-folder in diffusers layout: "transformer"
    library: str
    class_name: str  # class in `library`, equal to `_class_name` or `architectures[0]` of its config.json
    single_file_as: str | None = None  # diffusers class whose single-file conversion also applies to this class
    single_file_renames: Mapping[str, str] = field(default_factory=dict)  # prefixes to rename before that conversion
    float32_parts: tuple[str, ...] = ()  # modules or weights kept in float32, in addition to those of the class
    other_classes: tuple[str, ...] = ()  # alternatives to `class_name`; the config.json names the one to use
    optional: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """All classes that this component can have."""
        return (self.class_name, *self.other_classes)


@dataclass(frozen=True)
class Reader:
    """A tokenizer or processor: it turns text or images into inputs of `components`.

    It has no weights and is loaded on first use. An `optional` reader is only part of some presets and model folders.
    """

    name: str  # in the pipeline: "tokenizer", "tokenizer_2", "processor", "image_processor"
    folder: str  # sub-folder in diffusers layout
    files: str  # pattern of its files inside a repository: "tokenizer/"
    kind: Literal["tokenizer", "processor", "image_processor"] = "tokenizer"  # the Auto class that loads it
    optional: bool = False
    components: tuple[str, ...] = ("text_encoder",)  # components with outputs that depend on the files of this reader


@dataclass(frozen=True)
class Denoiser:
    """A component that predicts the velocity, and its range of noise levels.

    The range is sigma in [`low`, `high`), or [`low`, 1] for the denoiser of the highest noise levels.
    """

    name: str
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class ModelParts:
    """The components, denoisers and division factor of one model, where the models of a family differ.

    See `Family.parts`. `denoisers` are ordered from the highest noise levels down and cover all levels. `settings` are
    the entries of the model_index.json and of the configs of components that the pipeline reads, see
    `Family.index_settings` and `Family.config_settings`; those that the files lack are left out.
    """

    components: tuple[str, ...]
    denoisers: tuple[Denoiser, ...]
    division_factor: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    def denoiser_at(self, timestep: float) -> Denoiser:
        """Return the denoiser for `timestep` = 1000 * sigma; a boundary belongs to the denoiser of higher levels."""
        return next((each for each in self.denoisers if timestep >= 1000 * each.low), self.denoisers[-1])


@dataclass(frozen=True)
class AttentionBlocks:
    """A stack of blocks in the denoiser, and the attention module of each that accepts cached tokens.

    See `dsctl_core.media.kv_cache`.
    """

    module: str = "transformer_blocks"  # name of the module list; a denoiser without it has no such blocks
    attention: str = "attn"  # name of the attention module in each block
    cache_name: str = "double"  # prefix of the block names in a kv_cache: double_0, double_1, ...


@dataclass(frozen=True)
class Preset:
    """Published (or embedded) weights of a family.

    Attributes:
        name: Name of the preset, as in `--model NAME`.
        summary: One line for `dsctl models`.
        model_id: Repository of the weights; None for an embedded preset.
        files: File pattern inside the repository for each component and optional reader. An optional part that is
            missing here is not part of these weights.
        folder: Folder of an embedded preset, relative to the assets of the package.
        defaults: Recommended option values for these weights.
        from_repositories: Repository of each component or reader that is not in `model_id`.
        variant: Size of the model among the published sizes of the family (None: the first).
        schedule: Schedule of these weights, if it is not that of the family.
        base_preset: For distilled weights, the preset they were distilled from, which is better suited for training.
        index: Entries of the model_index.json other than the components.
    """

    name: str
    summary: str
    model_id: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    folder: str | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    from_repositories: dict[str, str] = field(default_factory=dict)
    variant: str | None = None
    schedule: Schedule | None = None
    base_preset: str | None = None
    index: dict[str, Any] = field(default_factory=dict)

    def repository(self, part: str) -> str:
        """Return the repository of a component or reader of a published preset."""
        assert self.model_id is not None, "an embedded preset is in no repository"
        return self.from_repositories.get(part, self.model_id)

    def local_path(self) -> Path | None:
        """Return the folder of an embedded preset; None for a published one."""
        from dsctl_core.assets import assets_path

        return None if self.folder is None else assets_path(self.folder)


@dataclass(frozen=True)
class Schedule:
    """Constants of the flow-matching schedule, with the names of diffusers' scheduler_config.json.

    The exponent of the shift, mu, is a linear function of the number of image tokens: `base_shift` at
    `base_image_seq_len` tokens, `max_shift` at `max_image_seq_len`. With `linear_shift` the linear function is the
    shift itself and mu is its logarithm (diffusers' `time_shift_type: linear`). `sampling_mu`, a function of
    (image tokens, steps), replaces the linear function if set. With `shift_terminal` the levels are stretched so that
    the last sigma has this value. `training_mu` is the fixed exponent for training.
    """

    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    shift_terminal: float | None = None
    training_mu: float = 0.8
    sampling_mu: Callable[[int, int], float] | None = None
    linear_shift: bool = False

    @classmethod
    def constant(cls, shift: float) -> Schedule:
        """Return the schedule with the same `shift` for every image size, for sampling and for training."""
        mu = math.log(shift)
        return cls(base_shift=mu, max_shift=mu, training_mu=mu)


@dataclass(frozen=True)
class OriginalNames:
    """Layer names of the original release of a model, mapped to those of diffusers; `{}` is the number of a block.

    A `fused` layer is the concatenation of several diffusers layers, in order. They are of equal size, or, for a fused
    layer in `shares`, have these multiples of a common size. A layer in `swapped` has the halves of its outputs in the
    other order. Layers in `ratios` have these numbers of outputs for inputs, which tells them from layers of the same
    name in other models.
    """

    single: Mapping[str, str]
    fused: Mapping[str, tuple[str, ...]]
    shares: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    swapped: tuple[str, ...] = ()
    ratios: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    own_prefix: bool = False  # whether diffusers reads a LoRA of this model only with the prefix of its own files


@dataclass(frozen=True)
class Family:
    """Description of a family: all that is known without loading a model."""

    name: str  # "qwen-image"; its folder is families/qwen_image
    title: str
    pipeline: str  # "dsctl_core.families.qwen_image.pipeline:QwenImagePipeline"
    pipeline_classes: tuple[str, ...]  # `_class_name` values of model_index.json that identify this family
    components: tuple[Component, ...]
    readers: tuple[Reader, ...]
    presets: tuple[Preset, ...]
    lora_targets: tuple[str, ...]
    division_factor: int  # height and width must be multiples of this; see also `index_division_factor`
    schedule: Schedule
    defaults: dict[str, Any]  # option values for weights without a preset
    extra_inputs: tuple[str, ...]  # inputs beyond image and prompt that training rows may have
    published: dict[str, dict[str, Any]]  # component -> official config sizes, for the meta-device contract
    tiny: dict[str, dict[str, Any]]  # component -> config of a tiny random model for tests
    # Videos have factor * n + remainder frames, as (factor, remainder); None: the family takes pictures only.
    time_division: tuple[int, int] | None = None
    # (config of the dit, width, height, frames, characters of a prompt) -> estimated size in bytes, in a bfloat16
    # cache, of one sample's latents and of its prompt embeddings; None: no estimate
    cache_bytes: Callable[[Mapping[str, Any], int, int, int, int], tuple[int, int]] | None = None
    # Other published sizes by name: component -> config entries that differ from `published`.
    variants: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    # Layer names of the original release, if the LoRA formats of other tools use them
    original_names: OriginalNames | None = None
    # Attention modules to which a kv_cache can add tokens
    attention_blocks: tuple[AttentionBlocks, ...] = (AttentionBlocks(),)
    # Whether some weights take a guidance scale as an input of the network.
    embedded_guidance: bool = False
    # model_index.json -> option values of a model, if they are not `defaults` for all models
    index_defaults: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    # Networks that predict the velocity, from the highest noise levels down.
    denoisers: tuple[Denoiser, ...] = (Denoiser("dit"),)
    # model_index.json -> denoisers of a model, if they are not `denoisers` for all models
    index_denoisers: Callable[[Mapping[str, Any]], tuple[Denoiser, ...]] | None = None
    # model_index.json -> division factor of a model, if it is not `division_factor` for all models
    index_division_factor: Callable[[Mapping[str, Any]], int] | None = None
    # Entries of the model_index.json, other than components, on which the outputs of the units depend.
    index_settings: tuple[str, ...] = ()
    # (component, entry of its config.json) on which they depend; in the settings its name is "component.entry".
    config_settings: tuple[tuple[str, str], ...] = ()
    # (parts of the model, sizes (width, height) of the reference images, pixels of the model's own size) -> (width,
    # height) of the edited image; None: about the number of pixels, with the aspect ratio of the first reference image
    edited_size: Callable[[ModelParts, Sequence[tuple[int, int]], int], tuple[int, int]] | None = None

    def sizes(self, component: str, variant: str | None = None) -> dict[str, Any]:
        """Return the published config of `component` in the size `variant` (None: the first)."""
        chosen = self.variants[variant] if variant is not None else {}
        return chosen.get(component, self.published[component])

    def all_sizes(self, component: str) -> list[dict[str, Any]]:
        """Return all published configs of `component`, without duplicates."""
        found: list[dict[str, Any]] = []
        for variant in (None, *self.variants):
            config = self.sizes(component, variant)
            found += [] if config in found else [config]
        return found

    def component(self, name: str) -> Component:
        """Return the component `name`; raise UsageError for an unknown name."""
        for component in self.components:
            if component.name == name:
                return component
        from dsctl_core.errors import unknown_name

        raise unknown_name(f"component of {self.name}", name, [c.name for c in self.components])

    def reader(self, name: str) -> Reader:
        """Return the reader `name`; raise UsageError for an unknown name."""
        for reader in self.readers:
            if reader.name == name:
                return reader
        from dsctl_core.errors import unknown_name

        raise unknown_name(f"reader of {self.name}", name, [reader.name for reader in self.readers])

    def denoiser_names(self) -> tuple[str, ...]:
        """Return the names of all denoisers that some weights of the family have."""
        published = [preset for preset in self.presets if preset.model_id is not None]
        parts = [self.parts(self.component_files(each), self.preset_index(each)) for each in published]
        return tuple(dict.fromkeys(d.name for each in (self.parts(), *parts) for d in each.denoisers))

    def _refuse_unplaced(self, present: Collection[str]) -> None:
        usual = {denoiser.name for denoiser in self.denoisers}
        for name in self.denoiser_names():
            if name in present and name not in usual:
                from dsctl_core.errors import DsctlError

                raise DsctlError(
                    f"nothing says at which noise levels the {name} of {self.title} acts",
                    hint="give a preset, or a model folder with its model_index.json, instead of single components",
                )

    @property
    def differs(self) -> bool:
        """Whether the models of the family can differ in components, denoisers, division factor or settings."""
        functions = (self.index_denoisers, self.index_division_factor, self.index_settings, self.config_settings)
        return any(functions) or any(component.optional for component in self.components)

    def component_files(self, preset: Preset) -> dict[str, str]:
        """Return the file pattern of each component of a published preset, by name."""
        readers = [reader.name for reader in self.readers]
        return {name: pattern for name, pattern in preset.files.items() if name not in readers}

    def reader_files(self, preset: Preset) -> dict[str, str]:
        """Return the file pattern of each reader of a published preset, by name."""
        chosen = [reader for reader in self.readers if not reader.optional or reader.name in preset.files]
        return {reader.name: preset.files.get(reader.name, reader.files) for reader in chosen}

    def preset_index(self, preset: Preset) -> dict[str, Any]:
        """Return the entries of a published preset's model_index.json that the `index_...` functions read."""
        found: dict[str, Any] = {"_class_name": self.pipeline_classes[0], **preset.index}
        for component in self.components:
            there = component.name in preset.files
            found[component.folder] = [component.library, component.class_name] if there else [None, None]
        return found

    def preset_configs(self, preset: Preset) -> dict[str, Mapping[str, Any]]:
        """Return the published config of each component in `config_settings`, by name."""
        return {name: self.sizes(name, preset.variant) for name, _ in self.config_settings}

    def parts(
        self,
        present: Collection[str] | None = None,
        index: Mapping[str, Any] | None = None,
        configs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> ModelParts:
        """Return the parts of a model with the components `present` (None: all) and the model_index.json `index`.

        `configs` are the contents of config.json by component, of which those in `config_settings` are needed.
        A component that is not optional counts as present, whether or not its weights were named. A denoiser beside the
        usual ones of which no index says at which levels it acts is a DsctlError.
        """
        if present is not None and index is None:
            self._refuse_unplaced(present)
        names = tuple(c.name for c in self.components if not c.optional or present is None or c.name in present)
        denoisers, factor = self.denoisers, self.division_factor
        if index is not None:
            denoisers = denoisers if self.index_denoisers is None else self.index_denoisers(index)
            factor = factor if self.index_division_factor is None else self.index_division_factor(index)
        settings = {name: index[name] for name in self.index_settings if name in index} if index is not None else {}
        for name, entry in self.config_settings:
            if entry in (configs or {}).get(name, {}):
                settings[f"{name}.{entry}"] = (configs or {})[name][entry]
        return ModelParts(names, denoisers, factor, settings)
