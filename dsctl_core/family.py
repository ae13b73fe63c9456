"""Describe a family of models: all that is known of it without loading a model. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dsctl_core.family_parts import (
    AttentionBlocks,
    Captioner,
    Component,
    ConfigOfWeights,
    ControlNet,
    ControlNetPreset,
    Denoiser,
    DiffSynthTable,
    FrameInputs,
    ModelParts,
    OriginalNames,
    OwnPart,
    Preset,
    PromptLimit,
    PublishedConfig,
    Reader,
    Schedule,
)

__all__ = [
    "AttentionBlocks",
    "Captioner",
    "Component",
    "ConfigOfWeights",
    "ControlNet",
    "ControlNetPreset",
    "Denoiser",
    "DiffSynthTable",
    "Family",
    "FrameInputs",
    "ModelParts",
    "OriginalNames",
    "OwnPart",
    "Preset",
    "PromptLimit",
    "PublishedConfig",
    "Reader",
    "Schedule",
]


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
    # Those of `extra_inputs` that a row may leave empty: it is trained on without them.
    optional_inputs: tuple[str, ...] = ()
    # Those of `extra_inputs` that are several files in a row: a list, or a folder of them.
    list_inputs: tuple[str, ...] = ()
    # The component that can describe pictures; None: none can
    captioner: Captioner | None = None
    # Columns of pictures that lie on each other, so that those of a row have one size.
    aligned_inputs: tuple[str, ...] = ()
    # Columns of pictures that keep their own size: units fit them to that of the sample.
    whole_inputs: tuple[str, ...] = ()
    # Columns of pictures or clips that go along with the target, of its size and frames: whether one picture can stand
    # for all frames of a clip.
    along_inputs: Mapping[str, bool] = field(default_factory=dict)
    # Columns that belong to another: a row that has one has the other too.
    companion_inputs: Mapping[str, str] = field(default_factory=dict)
    # The part of the first denoiser that is trained when nothing to train is named; None: there is no such part
    own_part: OwnPart | None = None
    # Whether the model decomposes a picture into layers: it needs one reference image, and makes and reads RGBA images.
    decomposes: bool = False
    # Videos have factor * n + remainder frames, as (factor, remainder); None: the family takes pictures only.
    time_division: tuple[int, int] | None = None
    # (config of the dit, width, height, frames, characters of a prompt) -> estimated size in bytes, in a bfloat16
    # cache, of one sample's latents and of its prompt embeddings; None: no estimate
    cache_bytes: Callable[[Mapping[str, Any], int, int, int, int], tuple[int, int]] | None = None
    # (parts, config of the dit, width, height of a reference picture) -> estimated bytes that it adds to an entry;
    # None: as many as a picture that is trained on
    reference_bytes: Callable[[ModelParts, Mapping[str, Any], int, int], int] | None = None
    # The longest prompt; None: prompts are never cut
    prompt_limit: PromptLimit | None = None
    # Prompts of a batch need no attention mask where they are equally long in units of this many tokens; None: they
    # never have one
    masked_in: int | None = None
    # Other published sizes by name: component -> config entries that differ from `published`.
    variants: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    # Encoders by variant (None: the first) and component: sizes that are in neither `published` nor `variants`
    encoders: dict[str | None, dict[str, PublishedConfig]] = field(default_factory=dict)
    # Parameters of the published weights by variant (None: the first) and component
    parameters: dict[str | None, dict[str, int]] = field(default_factory=dict)
    # Layer names of the original release, if the LoRA formats of other tools use them
    original_names: OriginalNames | None = None
    # Families whose denoiser has the same layers, or a part of those of this one, so that their LoRAs fit this one too
    same_layers_as: tuple[str, ...] = ()
    # Attention modules to which a kv_cache can add tokens
    attention_blocks: tuple[AttentionBlocks, ...] = (AttentionBlocks(),)
    # Changes a denoiser, to equal results up to rounding, so that a compiler generates code for all of its blocks
    for_compiler: Callable[[Any], None] | None = None
    # Whether some weights take a guidance scale as an input of the network.
    embedded_guidance: bool = False
    # The noise levels of `--timestep-sampling diffsynth`, if DiffSynth-Studio trains the family
    diffsynth_table: DiffSynthTable | None = None
    # model_index.json -> option values of a model, if they are not `defaults` for all models
    index_defaults: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    # Networks that predict the velocity, from the highest noise levels down.
    denoisers: tuple[Denoiser, ...] = (Denoiser("dit"),)
    # model_index.json -> denoisers of a model, if they are not `denoisers` for all models
    index_denoisers: Callable[[Mapping[str, Any]], tuple[Denoiser, ...]] | None = None
    # Other names of the class in `pipeline`, under which `dsctl_core` has it too: those of DiffSynth
    pipeline_aliases: tuple[str, ...] = ()
    # model_index.json -> division factor of a model, if it is not `division_factor` for all models
    index_division_factor: Callable[[Mapping[str, Any]], int] | None = None
    # config of the first denoiser -> kind of the model, if models of the family differ in the inputs that they take
    config_kind: Callable[[Mapping[str, Any]], str] | None = None
    # Division factors of kinds of models, where they are not `division_factor`
    kind_division_factors: dict[str, int] = field(default_factory=dict)
    # Pictures that kinds of models take as frames of their clips; a kind that is not here takes none
    kind_frames: dict[str, FrameInputs] = field(default_factory=dict)
    # Entries of the model_index.json, other than components, on which the outputs of the units depend.
    index_settings: tuple[str, ...] = ()
    # Kinds of control networks for the models of the family
    controlnets: tuple[ControlNet, ...] = ()
    # (parts of the model, sizes (width, height) of the reference images, pixels of the model's own size) -> (width,
    # height) of the edited image; None: about the number of pixels, with the aspect ratio of the first reference image
    edited_size: Callable[[ModelParts, Sequence[tuple[int, int]], int], tuple[int, int]] | None = None

    def sizes(self, component: str, variant: str | None = None) -> dict[str, Any]:
        """Return the published config of `component` in the size `variant` (None: the first).

        One of several denoisers of a class has the sizes of the one with published sizes.
        """
        known = self._sized_as(component)
        assert known is not None, f"{self.name} has no published sizes of its {component}"
        chosen = self.variants[variant] if variant is not None else {}
        return chosen.get(known, self.published[known])

    def _sized_as(self, component: str) -> str | None:
        """Return which component with published sizes has those of `component`: itself, or one of its class."""
        if component in self.published:
            return component
        wanted = self.component(component).class_name
        return next((c.name for c in self.components if c.class_name == wanted and c.name in self.published), None)

    def published_config(self, component: str, variant: str | None = None) -> PublishedConfig | None:
        """Return class and config of `component` in the size `variant` (None: the first); None if they are not known.

        The config of a component of diffusers has the arguments of its class.
        """
        chosen = self.encoders.get(variant, {}).get(component) or self.encoders.get(None, {}).get(component)
        if chosen is None and self._sized_as(component) is not None:
            return PublishedConfig(self.component(component).class_name, self.sizes(component, variant))
        return chosen

    def weight_bytes(self, preset: Preset) -> dict[str, int] | None:
        """Return the bytes of the weights of each component of `preset` in bfloat16; None if they are not known."""
        if preset.variant is not None and preset.variant not in self.parameters:
            return None
        counts = {**self.parameters.get(None, {}), **self.parameters.get(preset.variant, {})}
        names = self.component_files(preset)
        return {name: 2 * counts[name] for name in names} if names and set(names) <= set(counts) else None

    def stored_bytes(self, preset: Preset) -> dict[str, int] | None:
        """Return the bytes of the published files of each component of `preset`; None if they are not known."""
        sizes = self.weight_bytes(preset)
        return sizes and {name: size * 2 if name in preset.float32 else size for name, size in sizes.items()}

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

    def check_extra_inputs(self, names: Sequence[str]) -> None:
        """Raise UsageError for a name that is none of `extra_inputs`."""
        for name in names:
            if name not in self.extra_inputs:
                from dsctl_core.errors import unknown_name

                raise unknown_name("extra input", name, list(self.extra_inputs))

    def frame_inputs(self, parts: ModelParts) -> FrameInputs:
        """Return the pictures that a model with `parts` takes as frames of its clips."""
        return self.kind_frames.get(parts.kind or "", FrameInputs())

    @property
    def own_modules(self) -> tuple[str, ...]:
        """The modules that are trained when nothing to train is named, such as "dit.blocks"; () for none."""
        modules = () if self.own_part is None else self.own_part.modules
        return tuple(f"{self.denoisers[0].name}.{module}" for module in modules)

    @property
    def frame_columns(self) -> frozenset[str]:
        """The pictures that some models of the family take as frames of their clips, by column."""
        return frozenset(name for kind in self.kind_frames.values() for name in (*kind.needed, *kind.optional))

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
        """Whether the models of the family can differ in components, denoisers, division factor, settings or kind."""
        functions = (self.index_denoisers, self.index_division_factor, self.index_settings, self.config_kind)
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

    def preset_parts(self, preset: Preset) -> ModelParts:
        """Return the parts of a published preset."""
        config = self.sizes(self.denoisers[0].name, preset.variant)
        return self.parts(self.component_files(preset), self.preset_index(preset), config)

    def parts(
        self,
        present: Collection[str] | None = None,
        index: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> ModelParts:
        """Return the parts of a model.

        `present` are its components (None: all), `index` its model_index.json, and `config` the config of its first
        denoiser. A component that is not optional counts as present, whether or not its weights were named. A denoiser
        beside the usual ones of which no index says at which levels it acts is a DsctlError.
        """
        if present is not None and index is None:
            self._refuse_unplaced(present)
        names = tuple(c.name for c in self.components if not c.optional or present is None or c.name in present)
        denoisers, factor = self.denoisers, self.division_factor
        if index is not None:
            denoisers = denoisers if self.index_denoisers is None else self.index_denoisers(index)
            factor = factor if self.index_division_factor is None else self.index_division_factor(index)
        settings = {name: index[name] for name in self.index_settings if name in index} if index is not None else {}
        kind = None if config is None or self.config_kind is None else self.config_kind(config)
        return ModelParts(names, denoisers, self.kind_division_factors.get(kind or "", factor), settings, kind)
