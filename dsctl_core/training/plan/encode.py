"""Plan the first stage of a task: encode a dataset with a model into a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.cache.manifest import OF_CLIPS, OF_TABLES, Recipe
from dsctl_core.data import UnifiedDataset
from dsctl_core.data.build import build_dataset, refuse_file_names
from dsctl_core.errors import UsageError
from dsctl_core.families.prompt_lengths import cut_prompt_notes
from dsctl_core.families.resolve import ResolvedModel
from dsctl_core.losses import find_loss
from dsctl_core.losses.columns import refuse_unreadable
from dsctl_core.options import CacheOptions, TrainOptions
from dsctl_core.options.data import DataOptions
from dsctl_core.options.model import SomeModelOptions
from dsctl_core.options.template import MODEL as TEMPLATE
from dsctl_core.pipeline import BasePipeline
from dsctl_core.progress import Progress
from dsctl_core.remote.address import absolute, is_remote, place_of, shown
from dsctl_core.stages.encode import READERS, CacheResult, Encoder, EncodeSettings, encode_dataset
from dsctl_core.stages.split import Stages, plan_stages
from dsctl_core.training.distributed.accelerator import make_accelerator
from dsctl_core.training.model.module import float_dtype
from dsctl_core.training.model.open import (
    ModelUse,
    controls_of,
    empty_pipeline,
    findable,
    open_model,
    refuse_unread_files,
    without_downloads,
)
from dsctl_core.training.model.weight_edits import WeightEdits, identify
from dsctl_core.training.plan.stored import refuse_edits_of_stored

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class EncodePlan:
    """The first stage of a run: all that encoding `dataset` into a cache needs, except the folder."""

    resolved: ResolvedModel
    dataset: UnifiedDataset
    accelerator: Accelerator
    shell: BasePipeline  # the pipeline without any component
    stages: Stages
    task: str
    trainable: tuple[str, ...]
    edits: WeightEdits
    weights: SomeModelOptions
    data: DataOptions
    batch_size: int = 1
    prune: bool = False
    shared: bool = False

    def notes(self) -> list[str]:
        """Return lines for people about the dataset: its layout, what was left out, and the prompts that are cut."""
        return [*self.dataset.notes(), *cut_prompt_notes(self.dataset, self.resolved, download=True)]

    def fill(self, cache: Path, progress: Progress, deadline: float | None = None) -> CacheResult:
        """Encode the rows of the dataset that have no entry in the folder `cache` yet.

        Raises EncodingStopped where not all of them are encoded by `deadline`, of time.monotonic().
        """
        how = replace(self.settings(), deadline=deadline)
        return encode_dataset(cache, self.dataset, self.encoder(), how, progress)

    def encoder(self) -> Encoder:
        """Return the encoder. Identifies the weights that it will use, and downloads them if necessary."""
        return Encoder(self.shell, self.stages, self.recipe(), self.load)

    def load(self, components: Sequence[str]) -> BasePipeline:
        """Return the pipeline with `components` loaded in the dtype of the recipe."""
        if not components:
            return self.shell
        shell = self.shell
        pipe = self.resolved.load_pipeline(
            torch_dtype=shell.torch_dtype, device=shell.device, only=components, on_host=self.edits.packed
        )
        self.edits.apply(pipe)
        # Units must see the schedule of training.
        pipe.scheduler.set_timesteps(training=True)
        return pipe

    def settings(self) -> EncodeSettings:
        """Return the settings of encoding, for all processes of the run."""
        from accelerate.utils import gather_object

        accelerator = self.accelerator
        several = accelerator.num_processes > 1
        return EncodeSettings(
            batch_size=self.batch_size,
            readers=self.data.dataset_num_workers or READERS,
            skip_bad=self.data.on_bad_sample == "skip",
            prune=self.prune,
            shared=self.shared,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
            wait=accelerator.wait_for_everyone,
            **({"gather": gather_object} if several else {}),
        )

    def recipe(self) -> Recipe:
        """Return the recipe of the entries, which identifies the cache."""
        split, weights, data, edits = self.stages.split, self.weights, self.data, self.edits
        labels = {each.name: each.about().get("template") for each in self.resolved.side_networks}
        return Recipe(
            family=self.resolved.family.name,
            task=self.task,
            trainable=self.trainable,
            once=tuple((type(unit).__name__, unit.version) for unit in split.once),
            every_step=tuple(type(unit).__name__ for unit in split.every_step),
            components=identify(self.resolved, self.stages.first_components, edits),
            dtype=str(self.shell.torch_dtype).removeprefix("torch."),
            processing=picture_settings(data, self.resolved),
            extra_inputs=data.extra_inputs,
            model={
                "model": findable(weights.model),
                "model_paths": weights.model_paths,
                "tokenizer_path": weights.tokenizer_path,
                "model_id_with_origin_paths": weights.model_id_with_origin_paths,
                "fp8_models": list(edits.fp8),
                **({"quantize": dict(edits.quantized)} if edits.quantized else {}),
                "preset_lora_path": str(edits.lora) if edits.lora else None,
                "preset_lora_model": edits.lora_on,
                "template": labels.get(TEMPLATE),
                "controlnet": controls_of(self.resolved),
            },
            dataset={
                "dataset_base_path": place_of(data.dataset_base_path) if data.dataset_base_path else None,
                "dataset_metadata_path": shown(data.dataset_metadata_path) if data.dataset_metadata_path else None,
                "data_file_keys": list(data.data_file_keys),
                "column": list(data.column),
                "allow_outside": data.allow_outside,
                "caption_prefix": data.caption_prefix or None,
                "caption_suffix": data.caption_suffix or None,
                **({"mask_from_alpha": True} if data.mask_from_alpha else {}),
                **({OF_TABLES: self._tables()} if self.dataset.tables else clips_of(self.dataset)),
            },
        )

    def _tables(self) -> list[dict[str, Any]]:
        """Return of each of several datasets its table, how many rows it has, and how its files are processed."""
        found = []
        for table, part in zip(self.dataset.tables, self.dataset.parts, strict=True):
            table_anywhere = table.model_copy(update={name: absolute(path) for name, path in table.paths.items()})
            found.append(
                {
                    "table": table_anywhere.model_dump(mode="json"),
                    "rows": len(part.metadata.rows),
                    **clips_of(part),
                    "processing": picture_settings(self.data.of_table(table), self.resolved),
                }
            )
        return found


def plan_encoding(options: CacheOptions | TrainOptions, *, offline: bool = False) -> EncodePlan:
    """Plan the first stage alone, for `dsctl cache` or the task `...:data_process`; with `offline`, without downloads.

    Raises DsctlError, before any weights are loaded, for a dataset or a model that cannot be encoded.
    """
    if isinstance(options, TrainOptions):
        use, task, trainable = ModelUse.of_training(options), options.loss_task, options.trained_components
        device, precision = options.training.device, options.training.mixed_precision
        batch_size, prune, shared = options.training.batch_size, False, False
    else:
        use, task, trainable = ModelUse.of_cache(options), options.task, options.trained_names
        device, precision = options.device, options.mixed_precision
        batch_size, prune, shared = options.batch_size, options.prune, options.shared
    weights, data = options.weights, options.data
    resolved = open_model(weights, options.templates, use, data.extra_inputs, task)
    resolved = without_downloads(resolved) if offline else resolved
    use = use.located(resolved)
    refuse_edits_of_stored(resolved, use)
    pictures = resolved.picture_columns
    factor = resolved.parts.division_factor
    copied = is_remote(options.output_path if isinstance(options, CacheOptions) else options.output.output_path)
    dataset = build_dataset(
        data, resolved.family, resolved.defaults, factor, pictures, remember=not offline, copied=copied
    )
    refuse_file_names(dataset, data.extra_inputs)
    refuse_unread_files(dataset, data.extra_inputs, resolved, task)
    refuse_varying(dataset)
    if data.on_bad_sample == "stop":
        refuse_unreadable(dataset, find_loss(task))
    accelerator = make_accelerator(device, precision, options.processes)
    try:
        for name in trainable:
            resolved.check_component(name)
        shell = empty_pipeline(resolved, float_dtype(accelerator.mixed_precision), accelerator.device)
        stages = plan_stages(shell, find_loss(task), trainable)
        use.refuse_loras_on(stages.first_components, resolved.family)
        if isinstance(options, CacheOptions):  # the task ...:data_process takes the options of its second stage too
            use.refuse_unloaded(stages.first_components, "this cache")
    except BaseException:
        accelerator.end_training()
        raise
    return EncodePlan(
        resolved,
        dataset,
        accelerator,
        shell,
        stages,
        task,
        trainable,
        use.edits,
        weights,
        data,
        batch_size=batch_size,
        prune=prune,
        shared=shared,
    )


def picture_settings(data: DataOptions, resolved: ResolvedModel) -> dict[str, Any]:
    """Return the settings for resizing pictures; by default a native size of the model limits their pixels."""
    native = resolved.defaults.get("max_pixels")
    max_pixels = data.max_pixels if data.given("max_pixels") or native is None else native
    return {
        "height": data.height,
        "width": data.width,
        "max_pixels": None if data.height is not None or data.resolutions else max_pixels,
        "bucket_resolutions": ",".join(data.bucket_resolutions) or None,
        "num_frames": data.num_frames,
        "fps": data.fps,
        "short_clips": data.short_clips,
        "division_factor": resolved.parts.division_factor,
        "colours": "sRGB",  # into which pictures are converted; a cache from before has them as in the file
        # Not in caches from before, which have the first frames.
        **({} if data.clip_extraction == "head" else {"clip_extraction": data.clip_extraction}),
    }


def clips_of(dataset: UnifiedDataset) -> dict[str, list[int]]:
    """Return how many clips each row of the table gives, for the recipe of a cache; {} where each row gives one."""
    clips = dataset.metadata.clips
    return {} if clips is None else {OF_CLIPS: list(clips.counts)}


def refuse_varying(dataset: UnifiedDataset) -> None:
    """Raise an error for a dataset with random operators, whose rows cannot be encoded once."""
    if dataset.varies():
        raise UsageError(
            "prompts that are drawn anew for every sample (several in a row, or --caption-dropout) cannot be cached",
            hint="give each row one prompt and leave --caption-dropout out, or train without a cache",
        )
