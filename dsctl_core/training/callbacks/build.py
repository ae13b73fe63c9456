"""Build the callbacks of a run from its options: trackers, validation, samples and the moving average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.data import UnifiedDataset
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.controlnets import painting_on_input
from dsctl_core.options import TrainOptions
from dsctl_core.options.callbacks import CallbackOptions
from dsctl_core.options.data import DataOptions
from dsctl_core.progress import Progress
from dsctl_core.training.callbacks.base import TrainingHook
from dsctl_core.training.callbacks.ema import AverageWeights
from dsctl_core.training.callbacks.sample_frames import PAINTED, require_frames
from dsctl_core.training.callbacks.sample_inputs import loaded_inputs, own_inputs
from dsctl_core.training.callbacks.sample_pipeline import prepare_sample_pipeline
from dsctl_core.training.callbacks.sample_prompts import SamplePrompt, captions_of, sample_prompts, to_decompose
from dsctl_core.training.callbacks.sample_references import REFERENCES
from dsctl_core.training.callbacks.samples import Samples
from dsctl_core.training.callbacks.trackers import Trackers
from dsctl_core.training.callbacks.validation import Validation, hold_out
from dsctl_core.training.model.module import float_dtype
from dsctl_core.training.model.open import empty_pipeline
from dsctl_core.training.model.weight_edits import WeightEdits

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dsctl_core.families.resolve import ResolvedModel


@dataclass(frozen=True)
class CallbackPlan:
    """The callbacks of one run, planned and checked before any weights are loaded."""

    options: CallbackOptions
    resolved: ResolvedModel
    prompts: list[SamplePrompt]
    edits: WeightEdits  # to the components that encode prompts
    ema_decay: float | None
    validation_every: int | None
    batch_size: int
    labels: tuple[str, ...] = ()  # of several datasets

    def hold_out(self, dataset: Any) -> tuple[Any, Any]:
        """Return the training dataset and the validation dataset, which is None without --validation-split."""
        share = self.options.validation_split
        return (dataset, None) if share is None else hold_out(dataset, share)

    def hooks(
        self,
        accelerator: Accelerator,
        held_out: Any,
        loaded: tuple[str, ...] | None,
        config: dict[str, Any],
        on_bad_sample: Callable[[DsctlError], None] | None,
        progress: Progress,
    ) -> list[TrainingHook]:
        """Return the hooks. For samples, the prompts are encoded here by components that training does not load.

        Args:
            accelerator: the accelerator of the run.
            held_out: the validation dataset, or None.
            loaded: the components that training loads, or None for all.
            config: the options that trackers record.
            on_bad_sample: called with the error of a row that cannot be loaded, or None to raise it.
            progress: reports progress.
        """
        options = self.options
        trackers = Trackers([each.name for each in options.track], options.track_project, config, self.labels)
        averaging = [] if self.ema_decay is None else [AverageWeights(self.ema_decay)]
        hooks: list[TrainingHook] = [*averaging, trackers]
        if held_out is not None:
            hooks.append(Validation(held_out, self.validation_every, self.batch_size, trackers, on_bad_sample))
        if options.sample_every is not None:
            progress.note("Reading the prompts of the samples")
            dtype = float_dtype(accelerator.mixed_precision)
            shell = empty_pipeline(self.resolved, dtype, accelerator.device)
            sample_pipeline = prepare_sample_pipeline(self.resolved, shell, self.prompts, loaded, self.edits)
            hooks.append(Samples(sample_pipeline, self.prompts, options.sample_every, trackers))
        return hooks


def plan_callbacks(
    options: TrainOptions, resolved: ResolvedModel, source: UnifiedDataset | CachedDataset, edits: WeightEdits
) -> CallbackPlan:
    """Plan the callbacks of a training on `source`. `edits` are the changes made to weights after loading."""
    callbacks, training = options.callbacks, options.training
    if isinstance(source, CachedDataset):  # prompts are encoded with the weights that the cache was made with
        edits = WeightEdits.of_recipe(source.manifest.recipe)
    plan = CallbackPlan(
        callbacks,
        resolved,
        [],
        edits,
        options.optim.ema_decay,
        callbacks.validation_every or options.output.save_steps,
        training.batch_size,
        tuple(table.label for table in source.tables),
    )
    training_part, held_out = plan.hold_out(source)
    if callbacks.sample_every is None:
        return plan
    columns = resolved.side_columns
    frames, painting = resolved.family.frame_inputs(resolved.parts), painting_on_input(resolved)
    # Optional frames are given where they are in training.
    shown = [*frames.needed, *(name for name in options.data.extra_inputs if name in frames.optional)]
    followed = own_inputs(resolved.family)
    read = [name for name in followed if name in options.data.extra_inputs]
    if painting is not None:
        frames = replace(frames, optional=(*frames.optional, PAINTED))
    mask = None if painting is None else painting.pictures[1]
    captions = captions_of(training_part if held_out is None else held_out, columns, shown, read, mask)
    size, count = _trained_size(options.data, source), _trained_frames(options.data, source, resolved)
    pictures = resolved.picture_columns
    edited_size = resolved.edited_size if REFERENCES in resolved.family.extra_inputs else None
    factor = resolved.parts.division_factor
    prompts = sample_prompts(
        callbacks,
        resolved.defaults,
        size,
        captions,
        columns,
        num_frames=count,
        edited_size=edited_size,
        pictures=pictures,
        frames=frames,
        followed=followed,
        factor=factor,
        denoisers=[denoiser.name for denoiser in resolved.parts.denoisers],
    )
    for prompt in prompts:
        require_frames(prompt, frames, resolved.label)
        _refuse_a_half(prompt, resolved)
    if resolved.family.decomposes:
        prompts = [replace(prompt, edit_image=to_decompose(prompt)) for prompt in prompts]
    shell = empty_pipeline(resolved, float_dtype("no"), "cpu")
    for prompt in prompts:
        shell.check_size(prompt.height, prompt.width, prompt.num_frames or 1)
    family = resolved.family
    prompts = [replace(each, loaded=loaded_inputs(each, family, factor, options.data.fps)) for each in prompts]
    masks = _masks(resolved)
    prompts = [prompt.with_pictures(pictures, factor, masks).with_fitting_frames(factor) for prompt in prompts]
    return replace(plan, prompts=prompts)


def _masks(resolved: ResolvedModel) -> dict[str, str]:
    """Return the names of the masks of control networks, and of the pictures that each is a mask of."""
    painting = painting_on_input(resolved)
    masked = [side for side in resolved.side_networks if len(side.pictures) > 1]
    return {side.pictures[1]: PAINTED if side is painting else side.pictures[0] for side in masked}


def _refuse_a_half(prompt: SamplePrompt, resolved: ResolvedModel) -> None:
    """Raise UsageError for a sample with only some of the pictures that a control network takes together."""
    painting = painting_on_input(resolved)
    found = {name for name, value in prompt.columns.items() if value is not None} | set(prompt.frames)
    for side in resolved.side_networks:
        together = [*side.pictures, *([PAINTED] if side is painting else [])]
        given = [name for name in together if name in found]
        missing = [name for name in together if name not in found]
        if given and missing:
            raise UsageError(
                f"the sample {prompt.prompt!r} has {given[0]}, but no {missing[0]}",
                hint=f"give {missing[0]} too, or leave {'them all' if len(together) > 2 else 'both'} out for a sample "
                "without control",
            )


def _trained_size(options: DataOptions, source: UnifiedDataset | CachedDataset) -> tuple[int, int] | None:
    """Return the (height, width) in pixels of every training picture, or None if it varies."""
    sizes = {(each["height"], each["width"]) for each in _settings(options, source, ("height", "width"))}
    height, width = sizes.pop()
    return None if sizes or height is None or width is None else (height, width)


def _settings(
    options: DataOptions, source: UnifiedDataset | CachedDataset, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the settings `names` of the dataset, or of each of several that is not for regularization."""
    learned = [number for number, table in enumerate(source.tables) if not table.regularization]
    if isinstance(source, CachedDataset):
        return [source.manifest.recipe.processing_of(number) for number in learned or [0]]
    each = [options.of_table(source.tables[number]) for number in learned] or [options]
    return [{name: own.value_of(name) for name in names} for own in each]


def _trained_frames(
    options: DataOptions, source: UnifiedDataset | CachedDataset, resolved: ResolvedModel
) -> int | None:
    """Return the number of frames of every training clip; None for a model of pictures."""
    if resolved.family.time_division is None:
        return None
    frames = _settings(options, source, ("num_frames",))[0]["num_frames"]
    return frames or resolved.defaults["num_frames"]
