"""A family of models: its components, readers, denoisers, presets, schedule and LoRA targets. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Component:
    """One network of a family and where diffusers keeps it in a model folder.

    An `optional` one is only in some presets and folders; units ask `pipe.has(name)`. `library` is "transformers",
    "diffusers", or a module of the family's own, whose classes are diffusers' `ModelMixin` and are loaded as such.
    """

    name: str  # as the pipeline knows it: "dit", "vae", "text_encoder"
    folder: str  # sub-folder in diffusers layout: "transformer"
    library: str
    class_name: str  # class in that library, also `_class_name` or `architectures[0]` of its config.json
    single_file_as: str | None = None  # diffusers class whose conversion of original single files fits this one too
    single_file_renames: Mapping[str, str] = field(default_factory=dict)  # beginnings of names, before that conversion
    float32_parts: tuple[str, ...] = ()  # of its modules or weights, beside those that its class keeps in float32
    other_classes: tuple[str, ...] = ()  # classes that some weights of the family have instead; config.json says which
    optional: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """Every class that this component may have."""
        return (self.class_name, *self.other_classes)


@dataclass(frozen=True)
class Reader:
    """What turns text or pictures into the inputs of `components`; it has no weights, and is loaded when it is used.

    An `optional` one is only in some presets and folders.
    """

    name: str  # as the pipeline knows it: "tokenizer", "tokenizer_2", "processor", "image_processor"
    folder: str  # sub-folder in diffusers layout
    files: str  # pattern of its files inside a repository: "tokenizer/"
    kind: Literal["tokenizer", "processor", "image_processor"] = "tokenizer"  # the Auto class that loads it
    optional: bool = False
    components: tuple[str, ...] = ("text_encoder",)  # whose outputs depend on its files


@dataclass(frozen=True)
class Denoiser:
    """A component that predicts the velocity, and the noise levels at which it does: from `low` up to `high`.

    Both are sigmas. `low` belongs to it, and `high` to the one above, but for 1, which is the highest level.
    """

    name: str
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class ModelParts:
    """What one model of a family consists of, where models differ: see `Family.parts`.

    `denoisers` go from the highest noise levels down, and together they cover all levels.
    """

    components: tuple[str, ...]
    denoisers: tuple[Denoiser, ...]
    division_factor: int

    def denoiser_at(self, timestep: float) -> Denoiser:
        """Return the denoiser that acts at `timestep` = 1000 * sigma; the level of a boundary is the upper one's."""
        return next((each for each in self.denoisers if timestep >= 1000 * each.low), self.denoisers[-1])


@dataclass(frozen=True)
class AttentionBlocks:
    """A stack of blocks in the denoiser, and the attention in each that takes cached tokens (`media.kv_cache`)."""

    module: str = "transformer_blocks"  # the module list; what a denoiser does not have counts as empty
    attention: str = "attn"  # the module of each block
    cache_name: str = "double"  # a kv_cache calls the blocks double_0, double_1, ...


@dataclass(frozen=True)
class Preset:
    """Published (or embedded) weights of a family.

    `files` maps the name of a component, or of an optional reader, to the file pattern inside the repository
    `model_id`: what is optional and not named there is not part of these weights. What is in another repository (a
    component or a reader) is in `from_repositories`. An embedded preset has `folder` (relative to the package's
    assets) instead. `defaults` are option values that suit these weights. `variant` is their size among those that
    the family has published (None: the first). Weights that were distilled name in `base_preset` the ones that they
    were distilled from, which are the better ones to train.
    """

    name: str
    summary: str
    model_id: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    folder: str | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    from_repositories: dict[str, str] = field(default_factory=dict)
    variant: str | None = None
    schedule: Schedule | None = None  # of weights that were published with another than the family's
    base_preset: str | None = None
    index: dict[str, Any] = field(default_factory=dict)  # what their model_index.json says beside the components

    def repository(self, part: str) -> str:
        """Return the repository that a component, or a reader, of a published preset is in."""
        assert self.model_id is not None, "an embedded preset is in no repository"
        return self.from_repositories.get(part, self.model_id)

    def local_path(self) -> Path | None:
        """Return the folder of an embedded preset, else None."""
        from dsctl_core.assets import assets_path

        return None if self.folder is None else assets_path(self.folder)


@dataclass(frozen=True)
class Schedule:
    """Constants of the flow-matching schedule, named as diffusers' scheduler_config.json names them.

    mu, the exponent of the shift, goes linearly from `base_shift` at `base_image_seq_len` tokens to `max_shift` at
    `max_image_seq_len`; the last sigma is stretched to `shift_terminal` when that is given.
    `training_mu` is the fixed exponent used for training. Where the line is not all, `sampling_mu` gives the exponent
    from (image tokens, steps). With `linear_shift` the line is the shift itself, of which mu is the logarithm
    (diffusers' `time_shift_type: linear`).
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
        """Return the schedule with the same shift for every picture, in sampling and in training."""
        mu = math.log(shift)
        return cls(base_shift=mu, max_shift=mu, training_mu=mu)


@dataclass(frozen=True)
class OriginalNames:
    """Layer names that a model was published under before diffusers' own: original -> ours, `{}` the number of a block.

    `fused` layers are several of ours, in order, each as large as the others.
    """

    single: Mapping[str, str]
    fused: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Family:
    """Everything about a family that can be known without loading it."""

    name: str  # "qwen-image"; its folder is families/qwen_image
    title: str
    pipeline: str  # "dsctl_core.families.qwen_image.pipeline:QwenImagePipeline"
    pipeline_classes: tuple[str, ...]  # `_class_name` values of model_index.json that are this family
    components: tuple[Component, ...]
    readers: tuple[Reader, ...]
    presets: tuple[Preset, ...]
    lora_targets: tuple[str, ...]
    division_factor: int  # height and width must be multiples of this, but see `index_division_factor`
    schedule: Schedule
    defaults: dict[str, Any]  # option values for weights that are no preset
    extra_inputs: tuple[str, ...]  # inputs beyond image and prompt that training rows may have
    published: dict[str, dict[str, Any]]  # component -> official config sizes, for the meta-device contract
    tiny: dict[str, dict[str, Any]]  # component -> config of a tiny random model for tests
    # Videos have factor * n + remainder frames, as (factor, remainder); None: the family takes pictures only.
    time_division: tuple[int, int] | None = None
    # (the dit's config, width, height, frames, characters of a prompt) -> about how many bytes a cache in bfloat16
    # keeps of such a picture, and of such a prompt; None: it cannot be told
    cache_bytes: Callable[[Mapping[str, Any], int, int, int, int], tuple[int, int]] | None = None
    # Other published sizes, by name: component -> config, where it differs from `published`.
    variants: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    # The layer names that it was published under first, where other tools' LoRA formats keep to them
    original_names: OriginalNames | None = None
    # The attention that a kv_cache can add tokens to
    attention_blocks: tuple[AttentionBlocks, ...] = (AttentionBlocks(),)
    # Whether some weights take a guidance scale as an input of the network.
    embedded_guidance: bool = False
    # model_index.json -> option values for the weights beside it, where they are not `defaults` for all
    index_defaults: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    # The networks that predict the velocity, from the highest noise levels down.
    denoisers: tuple[Denoiser, ...] = (Denoiser("dit"),)
    # model_index.json -> the denoisers of the weights beside it, where they are not `denoisers` for all
    index_denoisers: Callable[[Mapping[str, Any]], tuple[Denoiser, ...]] | None = None
    # model_index.json -> the division factor of the weights beside it, where it is not `division_factor` for all
    index_division_factor: Callable[[Mapping[str, Any]], int] | None = None

    def sizes(self, component: str, variant: str | None = None) -> dict[str, Any]:
        """Return the published config of `component` in `variant` (None: the first one that was published)."""
        chosen = self.variants[variant] if variant is not None else {}
        return chosen.get(component, self.published[component])

    def all_sizes(self, component: str) -> list[dict[str, Any]]:
        """Return every published config of `component`, none twice."""
        found: list[dict[str, Any]] = []
        for variant in (None, *self.variants):
            config = self.sizes(component, variant)
            found += [] if config in found else [config]
        return found

    def component(self, name: str) -> Component:
        """Return the component called `name`; an unknown name is a usage error with the near miss."""
        for component in self.components:
            if component.name == name:
                return component
        from dsctl_core.errors import unknown_name

        raise unknown_name(f"component of {self.name}", name, [c.name for c in self.components])

    def reader(self, name: str) -> Reader:
        """Return the reader called `name`; an unknown name is a usage error with the near miss."""
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
        """Whether models of the family can consist of other parts than one another."""
        functions = (self.index_denoisers, self.index_division_factor)
        return any(functions) or any(component.optional for component in self.components)

    def component_files(self, preset: Preset) -> dict[str, str]:
        """Return the file pattern of each component that a published preset has, by name."""
        readers = [reader.name for reader in self.readers]
        return {name: pattern for name, pattern in preset.files.items() if name not in readers}

    def reader_files(self, preset: Preset) -> dict[str, str]:
        """Return the file pattern of each reader that a published preset has, by name."""
        chosen = [reader for reader in self.readers if not reader.optional or reader.name in preset.files]
        return {reader.name: preset.files.get(reader.name, reader.files) for reader in chosen}

    def preset_index(self, preset: Preset) -> dict[str, Any]:
        """Return what the model_index.json of a published preset says, as far as `index_...` functions read it."""
        found: dict[str, Any] = {"_class_name": self.pipeline_classes[0], **preset.index}
        for component in self.components:
            there = component.name in preset.files
            found[component.folder] = [component.library, component.class_name] if there else [None, None]
        return found

    def parts(self, present: Collection[str] | None = None, index: Mapping[str, Any] | None = None) -> ModelParts:
        """Return what a model consists of that has the components `present` (None: all) and this model_index.json.

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
        return ModelParts(names, denoisers, factor)
