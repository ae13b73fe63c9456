"""What a family of models declares about itself: components, presets, schedule, LoRA targets. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Component:
    """One network of a family and where diffusers keeps it in a model folder."""

    name: str  # as the pipeline knows it: "dit", "vae", "text_encoder"
    folder: str  # sub-folder in diffusers layout: "transformer"
    library: Literal["diffusers", "transformers"]
    class_name: str  # class in that library, also `_class_name` or `architectures[0]` of its config.json


@dataclass(frozen=True)
class Preset:
    """Published (or embedded) weights of a family.

    `files` maps a component's name to the file pattern inside the repository `model_id`. An embedded preset has
    `folder` (relative to the package's assets) instead. `defaults` are option values that suit these weights.
    """

    name: str
    summary: str
    model_id: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    folder: str | None = None
    defaults: dict[str, Any] = field(default_factory=dict)

    def local_path(self) -> Path | None:
        """Return the folder of an embedded preset, else None."""
        from dsctl_core.assets import assets_path

        return None if self.folder is None else assets_path(self.folder)


@dataclass(frozen=True)
class Schedule:
    """Constants of the flow-matching schedule, named as diffusers' scheduler_config.json names them.

    mu, the exponent of the shift, goes linearly from `base_shift` at `base_image_seq_len` tokens to `max_shift` at
    `max_image_seq_len`; the last sigma is stretched to `shift_terminal` when that is given.
    `training_mu` is the fixed exponent used for training.
    """

    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    shift_terminal: float | None = None
    training_mu: float = 0.8


@dataclass(frozen=True)
class Family:
    """Everything about a family that can be known without loading it."""

    name: str  # "qwen-image"; its folder is families/qwen_image
    title: str
    pipeline: str  # "dsctl_core.families.qwen_image.pipeline:QwenImagePipeline"
    pipeline_classes: tuple[str, ...]  # `_class_name` values of model_index.json that are this family
    components: tuple[Component, ...]
    tokenizer_folder: str
    tokenizer_files: str
    presets: tuple[Preset, ...]
    lora_targets: tuple[str, ...]
    division_factor: int  # height and width must be multiples of this
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

    def component(self, name: str) -> Component:
        """Return the component called `name`; an unknown name is a usage error with the near miss."""
        for component in self.components:
            if component.name == name:
                return component
        from dsctl_core.errors import unknown_name

        raise unknown_name(f"component of {self.name}", name, [c.name for c in self.components])
