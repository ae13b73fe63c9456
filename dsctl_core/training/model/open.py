"""Find the model of a run from its options, with its side networks, and build its pipeline without weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.control.source import ControlNetSource
from dsctl_core.data.dataset import SINGLE_COLUMNS
from dsctl_core.data.masks import MASK
from dsctl_core.errors import UsageError, unknown_name
from dsctl_core.families import pipeline_class
from dsctl_core.families.controlnets import with_controlnets
from dsctl_core.families.resolve import ResolvedModel, resolve_model
from dsctl_core.family import Family, ModelParts, Schedule
from dsctl_core.lora.files import read_lora
from dsctl_core.losses import find_loss
from dsctl_core.options import CacheOptions, TrainOptions
from dsctl_core.options.control import MODEL as CONTROLNET
from dsctl_core.options.control import ControlNetFile
from dsctl_core.options.lora import LoraFile
from dsctl_core.options.model import SomeModelOptions
from dsctl_core.options.quantize import quantized_pairs, require_library
from dsctl_core.options.template import INPUTS as TEMPLATE_COLUMN
from dsctl_core.options.template import MODEL as TEMPLATE
from dsctl_core.options.template import TemplateOptions, TemplateSource
from dsctl_core.pipeline import BasePipeline
from dsctl_core.template.trust import Trust
from dsctl_core.training.model.fp8 import component_at
from dsctl_core.training.model.weight_edits import WeightEdits

if TYPE_CHECKING:
    import torch

    from dsctl_core.data import UnifiedDataset

READ_MASK = "loss_mask"  # the input of a loss that takes masks


@dataclass(frozen=True)
class ModelUse:
    """The use of a model in a run: the components or modules that it trains, and the LoRAs merged into it first."""

    trained: tuple[str, ...]
    edits: WeightEdits
    lora_on: str | None = None  # the component that --lora-base-model names
    loras: tuple[LoraFile, ...] = ()  # merged into every component that they have layers for
    controlnets: tuple[ControlNetFile, ...] = ()
    seed: int = 0  # of the weights of new control networks
    only_encodes: bool = False  # for a cache: what it has is trained later

    @classmethod
    def of_training(cls, options: TrainOptions) -> ModelUse:
        """Return the use of the model in a training."""
        adapter = options.adapter
        fp8, quantized = options.training.fp8_models, options.training.quantize
        pairs = quantized_pairs(quantized, fp8)
        edits = WeightEdits(fp8, adapter.preset_lora_path, adapter.preset_lora_model or "dit", pairs)
        named, seed = options.controls.controlnet, options.training.seed
        return cls(options.trained_names, edits, adapter.lora_base_model, adapter.lora, named, seed)

    @classmethod
    def of_cache(cls, options: CacheOptions) -> ModelUse:
        """Return the use of the model in a cache."""
        edits = WeightEdits(options.fp8_models, quantized=quantized_pairs(options.quantize, options.fp8_models))
        named = options.controls.controlnet
        return cls(options.trained_names, edits, controlnets=named, only_encodes=True)

    def located(self, resolved: ResolvedModel) -> ModelUse:
        """Return it with the names of the components in fp8, which may be named by the locations of their weights."""
        names = tuple(dict.fromkeys(component_at(resolved, part) for part in self.edits.fp8))
        for name, form in self.edits.quantized:
            resolved.family.component(name)
            require_library(form)
            quantized_pairs((f"{name}={form}",), names)
        return replace(self, edits=replace(self.edits, fp8=names))

    def refuse_unloaded(self, loaded: Collection[str], what: str) -> None:
        """Raise an error for an edit of a component that the run does not load. `what` is the kind of the run."""
        for name in self.edits.packed:
            if name not in loaded:
                _, flag = self.edits.holding(name)
                hint = "leave it out" if len(self.edits.packed) == 1 else f"leave {name} out"
                raise UsageError(f"{flag} {name} has no effect on {what}, which does not load it", hint=hint)
        if self.edits.lora is not None and self.edits.lora_on not in loaded:
            raise UsageError(
                f"--preset-lora-path has no effect on {what}, which does not load the {self.edits.lora_on}",
                hint="leave it out",
            )

    def refuse_loras_on(self, components: Iterable[str], family: Family) -> None:
        """Raise an error for a LoRA of --lora on one of `components`: the cache has their outputs without it."""
        changed = self.changed_by_loras(family)
        for name in components:
            if name in changed:
                raise UsageError(
                    f"--lora changes the {name}, whose outputs are in the cache as they were without it",
                    hint="train without a cache, or merge the LoRA into the model first",
                )

    def changed_by_loras(self, family: Family) -> set[str]:
        """Return the components that the LoRAs of --lora have layers for."""
        names = tuple(component.name for component in family.components)
        return {name for lora in self.loras for name in read_lora(lora.path, names, [family.original_names]).components}


def open_model(
    weights: SomeModelOptions, templates: TemplateOptions, use: ModelUse, extra_inputs: Sequence[str], task: str
) -> ResolvedModel:
    """Find the model that the options name, with its side networks, and check the extra inputs for it."""
    found = resolve_model(
        weights.model, weights.model_paths, weights.model_id_with_origin_paths, weights.tokenizer_path
    )
    required = TEMPLATE_COLUMN in extra_inputs
    resolved = with_template(found, templates.template, use, trusted=templates.trust_template, required=required)
    resolved = with_controls(resolved, use)
    refuse_extra_inputs(extra_inputs, resolved, task)
    return replace(resolved, masked=MASK in extra_inputs)


def with_controls(resolved: ResolvedModel, use: ModelUse) -> ResolvedModel:
    """Return the model with the control networks of the run; raise UsageError for a use that they do not have."""
    names = {name.split(".")[0] for name in (*use.trained, *((use.lora_on or "").split(",")), *use.edits.packed)}
    named = sorted(name for name in names if name.startswith(CONTROLNET))
    if named and not use.controlnets:
        kinds = ", ".join(kind.name for kind in resolved.family.controlnets)
        raise UsageError(
            f"{named[0]} is to be trained, but no control network is given",
            hint=f"give --controlnet too: a name, a file, or a new one: {kinds}" if kinds else "name another component",
        )
    for name in named:
        _refuse_packed(use, name)
        if name in (use.lora_on or "").split(","):
            raise UsageError(f"{name} cannot get a LoRA", hint=f"train it whole: --trainable-models {name}")
    trained = None if use.only_encodes else [name for name in names if name.startswith(CONTROLNET)]
    return with_controlnets(resolved, use.controlnets, seed=use.seed, trained=trained)


def _refuse_packed(use: ModelUse, name: str) -> None:
    if name in use.edits.packed:
        held, flag = use.edits.holding(name)
        raise UsageError(f"{name} cannot be {held}", hint=f"name other components in {flag}")


def controls_of(resolved: ResolvedModel) -> list[str]:
    """Return the kinds of the control networks of a model, which say what a cache has for them."""
    return [each.kind.name for each in resolved.side_networks if isinstance(each, ControlNetSource)]


def with_template(
    resolved: ResolvedModel, source: TemplateSource | None, use: ModelUse, *, trusted: bool, required: bool
) -> ResolvedModel:
    """Return the model with the template `source` as a side network, or unchanged without a source.

    `required` means that every row must have inputs for the template.
    """
    if source is None:
        if any(name.split(".")[0] == TEMPLATE for name in use.trained):
            raise UsageError(f"{TEMPLATE} is to be trained, but no template is given", hint="give --template DIR too")
        return resolved
    _refuse_packed(use, TEMPLATE)
    if use.lora_on == TEMPLATE:
        raise UsageError(f"{TEMPLATE} cannot get a LoRA", hint=f"train it whole: --trainable-models {TEMPLATE}")
    from dsctl_core.template.training import open_template

    template = open_template(source, Trust(trusted), use.trained, required=required)
    return replace(resolved, side_networks=(*resolved.side_networks, template))


def refuse_extra_inputs(names: Sequence[str], resolved: ResolvedModel, task: str) -> None:
    """Raise an error for an extra input that neither the family, nor a side network, nor the task's loss reads."""
    loss = find_loss(task)
    masks = (MASK,) if READ_MASK in loss.optional else ()
    known = (*resolved.family.extra_inputs, *resolved.side_columns, *loss.columns, *masks)
    for name in names:
        if name not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no extra inputs"
            raise unknown_name("extra input", name, known, listing=f"{resolved.family.title} {takes}")


def refuse_unread_files(
    dataset: UnifiedDataset, extra_inputs: Sequence[str], resolved: ResolvedModel, task: str
) -> None:
    """Raise a UsageError for a column of files that is loaded, and that neither the model nor the loss is given."""
    loss, frames = find_loss(task), resolved.family.frame_inputs(resolved.parts)
    read = {dataset.data_file_keys[0], *SINGLE_COLUMNS, *extra_inputs, *resolved.side_columns, *frames.needed}
    known = {*resolved.family.extra_inputs, *loss.columns, *((MASK,) if READ_MASK in loss.optional else ())}
    for name in dataset.data_file_keys:
        if name not in read:
            also = f"give --extra-inputs {','.join([*extra_inputs, name])} too, or " if name in known else ""
            raise UsageError(
                f"--data-file-keys has {name}, but nothing in this run reads that column",
                hint=f"{also}leave it out of --data-file-keys",
            )


def without_downloads(resolved: ResolvedModel) -> ResolvedModel:
    """Return the model limited to the disk: a missing file is an error instead of a download."""
    configs = tuple(replace(config, skip_download=True) for config in resolved.model_configs)
    readers = {name: replace(config, skip_download=True) for name, config in resolved.reader_configs.items()}
    sides = tuple(each.without_downloads() for each in resolved.side_networks)
    return replace(resolved, model_configs=configs, reader_configs=readers, side_networks=sides)


def empty_pipeline(resolved: ResolvedModel, dtype: torch.dtype, device: Any) -> BasePipeline:
    """Return the pipeline of a model without components: its units can be inspected, but not run."""
    pipe = empty_pipeline_of_family(resolved.family, dtype, device, resolved.schedule, resolved.parts)
    return resolved.with_additions(pipe, lambda _: "absent")


def empty_pipeline_of_family(
    family: Family,
    dtype: torch.dtype,
    device: Any,
    schedule: Schedule | None = None,
    parts: ModelParts | None = None,
) -> BasePipeline:
    """Return the pipeline of a family without components.

    `schedule` defaults to the family's; without `parts`, the model has all optional components.
    """
    about: dict[str, Any] = {"torch_dtype": dtype, "device": device, "parts": parts or family.parts()}
    pipe = pipeline_class(family)({}, None, schedule or family.schedule, **about).eval()
    pipe.scheduler.set_timesteps(training=True)
    return pipe


def findable(model: str | None) -> str | None:
    """Return a model's name, with a path made absolute so that it is valid in every working directory."""
    return str(Path(model).absolute()) if model is not None and Path(model).is_dir() else model
