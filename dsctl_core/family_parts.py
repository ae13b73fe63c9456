"""Describe the parts of a family of models: components, readers, denoisers, presets, schedule. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dsctl_core.options.base import Solver


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
    original_class: str | None = None  # `_class_name` in the config.json of the original release, if it has one
    original_folder: str | None = None  # its folder in the original release, where two components have one class

    @property
    def class_names(self) -> tuple[str, ...]:
        """All classes that this component can have."""
        return (self.class_name, *self.other_classes)

    def is_named(self, config_class: str) -> bool:
        """Return whether a config.json with the class `config_class` is one of this component, in any layout."""
        return config_class in self.class_names or config_class == self.original_class


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
class Captioner:
    """A component that can describe pictures, because it is a vision-language model, and how it is asked.

    `processor` is a function, "module:name", from a pipeline with the component and its readers to a processor of
    transformers that has a chat template.
    """

    component: str
    processor: str


@dataclass(frozen=True)
class Denoiser:
    """A component that predicts the velocity, and its range of noise levels.

    The range is sigma in [`low`, `high`), or [`low`, 1] for the denoiser of the highest noise levels.
    """

    name: str
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class FrameInputs:
    """The pictures that a kind of model takes as frames of its clips: those that it needs, and optional ones.

    They are inputs of the pipeline: `input_image`, the first frame, and `end_image`, the last.
    """

    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def takes(self, name: str) -> bool:
        """Return whether `name` is one of the inputs."""
        return name in (*self.needed, *self.optional)


@dataclass(frozen=True)
class OwnPart:
    """Modules of a denoiser that are trained, all of their weights, when nothing to train is named.

    They are those of the first denoiser. `learning_rate` is the default for these modules of any denoiser. `called` is
    the name of the component that the part is in DiffSynth-Studio ("": none).
    """

    modules: tuple[str, ...]
    learning_rate: float
    called: str = ""

    def holds(self, name: str) -> bool:
        """Return whether `name`, such as "dit.blocks.0", is one of the modules or inside of one, in any component."""
        module = name.partition(".")[2]
        return any(f"{module}.".startswith(f"{each}.") for each in self.modules)


@dataclass(frozen=True)
class ModelParts:
    """The components, denoisers and division factor of one model, where the models of a family differ.

    See `Family.parts`. `denoisers` are ordered from the highest noise levels down and cover all levels. `settings` are
    the entries of the model_index.json that the pipeline reads, see `Family.index_settings`; those that the file lacks
    are left out. `kind` is the kind of the model in its family (`Family.config_kind`); None where the family has one
    kind, or it is not known.
    """

    components: tuple[str, ...]
    denoisers: tuple[Denoiser, ...]
    division_factor: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: str | None = None

    def denoiser_at(self, timestep: float) -> Denoiser:
        """Return the denoiser for `timestep` = 1000 * sigma; a boundary belongs to the denoiser of higher levels."""
        return next((each for each in self.denoisers if timestep >= 1000 * each.low), self.denoisers[-1])


@dataclass(frozen=True)
class PromptLimit:
    """The number of tokens of a prompt that reach the denoiser; the end of a longer prompt is cut.

    `count(reader, prompts, index)` returns the number of tokens of each prompt, counted as `tokens` is: with what the
    model puts around it, if that is part of the limit. It needs no weights; `index` is the model_index.json, or None if
    there is none. `reader` is the name of the tokenizer. `of_kind` has the number for kinds of models
    (`Family.config_kind`) that take another than `tokens`.
    """

    tokens: int
    count: Callable[[Any, Sequence[str], Mapping[str, Any] | None], list[int]]
    reader: str = "tokenizer"
    of_kind: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class AttentionBlocks:
    """A stack of blocks in the denoiser, and the attention module of each that accepts cached tokens.

    See `dsctl_core.media.kv_cache`.
    """

    module: str = "transformer_blocks"  # name of the module list; a denoiser without it has no such blocks
    attention: str = "attn"  # name of the attention module in each block
    cache_name: str = "double"  # prefix of the block names in a kv_cache: double_0, double_1, ...
    other_cache_names: tuple[str, ...] = ()  # prefixes that are read too, because templates of other tools use them


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
        shared: Folder of each component or reader of an embedded preset that is not in `folder`, because another preset
            has it too; relative to the assets of the package.
        defaults: Recommended option values for these weights.
        from_repositories: Repository of each component or reader that is not in `model_id`.
        variant: Size of the model among the published sizes of the family (None: the first).
        schedule: Schedule of these weights, if it is not that of the family.
        base_preset: For distilled weights, the preset they were distilled from, which is better suited for training.
        index: Entries of the model_index.json other than the components.
        license: License of the weights, as an SPDX identifier or by its name (None: not known).
        gated: Whether Hugging Face asks for consent to the license, and for a token, before a download.
        float32: Components whose published weights are stored in float32; those of the others are in bfloat16.
        first_choice: Whether these weights suit a first training: not distilled, from text alone, and without consent.
    """

    name: str
    summary: str
    model_id: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    folder: str | None = None
    shared: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    from_repositories: dict[str, str] = field(default_factory=dict)
    variant: str | None = None
    schedule: Schedule | None = None
    base_preset: str | None = None
    index: dict[str, Any] = field(default_factory=dict)
    license: str | None = None
    gated: bool = False
    float32: tuple[str, ...] = ()
    first_choice: bool = False

    def repository(self, part: str) -> str:
        """Return the repository of a component or reader of a published preset."""
        assert self.model_id is not None, "an embedded preset is in no repository"
        return self.from_repositories.get(part, self.model_id)

    def local_path(self) -> Path | None:
        """Return the folder of an embedded preset; None for a published one."""
        from dsctl_core.assets import assets_path

        return None if self.folder is None else assets_path(self.folder)

    def shared_paths(self) -> dict[str, Path]:
        """Return the folder of each component or reader of an embedded preset that is not in its own folder."""
        from dsctl_core.assets import assets_path

        return {name: assets_path(folder) for name, folder in self.shared.items()}


@dataclass(frozen=True)
class ControlNetPreset:
    """Published weights of a control network: the repository and the pattern of the files in it.

    `config` are the entries in which it differs from a new network of its kind.
    """

    name: str
    summary: str
    model_id: str
    files: str
    license: str | None = None  # as an SPDX identifier or by its name (None: not known)
    config: Mapping[str, Any] = field(default_factory=dict)


# (shapes of the tensors of a file by name, content of its config.json or None, whether a tensor is all zero by its
# name) -> config of the network, or None for another network
ConfigOfWeights = Callable[
    [Mapping[str, tuple[int, ...]], Mapping[str, Any] | None, Callable[[str], bool]], dict[str, Any] | None
]


@dataclass(frozen=True)
class ControlNet:
    """A kind of control network for the models of a family.

    Attributes:
        name: Name of the kind, and of a new network in training, which changes nothing before it is trained.
        summary: One line about what it takes.
        library: "diffusers", or a module of the family whose classes derive from diffusers' `ModelMixin`.
        class_name: The class in `library`.
        control: "MODULE:FUNCTION" of the function from (name of the network, its use) to a `SideNetwork`.
        columns: Names of its inputs, which are pictures: "control_image", and "control_mask" if it takes a mask.
        new_config: Config of a denoiser -> config of a new network for it.
        fixed: Entries of the config that must be those of `new_config` to fit the denoiser.
        config_of: Tells the network, and its config, from weights.
        presets: Its published weights.
        starts_from: Config of a new network -> which of its weights are those of the denoiser, as prefixes of the names
            in the network and in the denoiser (None: none of them).
        modes: Names of the kinds of control pictures among which a use chooses, by number; () for one kind.
        modes_entry: Entry of the config with the number of modes that a network has.
        uses: Kinds as which the same weights can be used, by the #MODE that says so.
        masks_input: Whether its mask is of the input image, not of the control image.
        leaves_out: Config -> prefixes of the names of weights that published files have but the network does not.
    """

    name: str
    summary: str
    library: str
    class_name: str
    control: str
    columns: tuple[str, ...]
    new_config: Callable[[Mapping[str, Any]], dict[str, Any]]
    fixed: tuple[str, ...]
    config_of: ConfigOfWeights
    presets: tuple[ControlNetPreset, ...] = ()
    starts_from: Callable[[Mapping[str, Any]], Mapping[str, str]] | None = None
    modes: tuple[str, ...] = ()
    modes_entry: str = ""
    uses: Mapping[str, str] = field(default_factory=dict)
    masks_input: bool = False
    leaves_out: Callable[[Mapping[str, Any]], tuple[str, ...]] | None = None


@dataclass(frozen=True)
class PublishedConfig:
    """The class of a published component, and the values of its config.json that are not those of the class."""

    class_name: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Schedule:
    """Constants of the flow-matching schedule, with the names of diffusers' scheduler_config.json.

    The exponent of the shift, mu, is a linear function of the number of image tokens: `base_shift` at
    `base_image_seq_len` tokens, `max_shift` at `max_image_seq_len`. `sampling_mu`, a function of (image tokens, steps),
    replaces the linear function if set. With `linear_shift` the value of the function is the shift itself and mu is its
    logarithm (diffusers' `time_shift_type: linear`). With `shift_terminal` the levels are stretched so that the last
    sigma has this value. `training_mu` is the fixed exponent for training. `solver` is the one of inference.
    """

    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    shift_terminal: float | None = None
    training_mu: float = 0.8
    sampling_mu: Callable[[int, int], float] | None = None
    linear_shift: bool = False
    solver: Solver = "euler"

    @classmethod
    def constant(cls, shift: float) -> Schedule:
        """Return the schedule with the same `shift` for every image size, for sampling and for training."""
        mu = math.log(shift)
        return cls(base_shift=mu, max_shift=mu, training_mu=mu)


@dataclass(frozen=True)
class DiffSynthTable:
    """The 1000 noise levels with which DiffSynth-Studio trains a family (its diffusion/flow_match.py).

    The levels go evenly from 1 down to `last`, or to one step above 0 if it is None. They are shifted by exp(`mu`) and
    then stretched so that the last is `terminal` (None: not stretched).
    """

    mu: float
    terminal: float | None = None
    last: float | None = None


@dataclass(frozen=True)
class OriginalNames:
    """Layer names of the original release of a model, mapped to those of diffusers; `{}` is the number of a block.

    A `fused` layer is the concatenation of several diffusers layers, in order. They are of equal size, or, for a fused
    layer in `shares`, have these multiples of a common size. A layer in `swapped` has the halves of its outputs in the
    other order. Layers in `ratios` have these numbers of outputs for inputs, which tells them from layers of the same
    name in other models. `converted_as` is the diffusers class whose conversion of single files knows the original
    names, which verifies files that are written with this table; it must take a part of the tensors (None: there is
    none). `diffusers_prefix` is the prefix of diffusers' own names in LoRA files, if diffusers' reader does not accept
    "diffusion_model." before them. `in_diffsynth` says whether DiffSynth-Studio has the original names too, and not
    those of diffusers.
    """

    single: Mapping[str, str]
    fused: Mapping[str, tuple[str, ...]]
    shares: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    swapped: tuple[str, ...] = ()
    ratios: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    converted_as: str | None = None
    diffusers_prefix: str | None = None
    in_diffsynth: bool = False
