"""From options to a cache: what the first stage of a task is, on which model, with which precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.cache.manifest import Recipe
from dsctl_core.cache.shards import FOLDER
from dsctl_core.checkpoint.identify import identify_weights
from dsctl_core.checkpoint.load import find_component_paths
from dsctl_core.data import UnifiedDataset
from dsctl_core.data.build import build_dataset
from dsctl_core.errors import DsctlError, UsageError, unknown_name
from dsctl_core.families import pipeline_class
from dsctl_core.families.resolve import ResolvedModel, resolve_model
from dsctl_core.family import Family, ModelParts
from dsctl_core.lora.files import read_lora
from dsctl_core.lora.layers import fuse_lora
from dsctl_core.losses import find_loss
from dsctl_core.losses.columns import refuse_unreadable
from dsctl_core.memory.quantize import store_in_fp8
from dsctl_core.options import CacheOptions, TrainOptions
from dsctl_core.options.template import INPUTS as TEMPLATE_COLUMN
from dsctl_core.options.template import MODEL as TEMPLATE
from dsctl_core.options.template import TemplateSource
from dsctl_core.pipeline import BasePipeline
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.stages.encode import READERS, CacheResult, Encoder, EncodeSettings, encode_dataset
from dsctl_core.stages.split import Stages, plan_stages
from dsctl_core.template.trust import Trust
from dsctl_core.training.distributed.accelerator import make_accelerator
from dsctl_core.training.model.module import float_dtype

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WeightEdits:
    """What is done to the weights of components after they were loaded."""

    fp8: tuple[str, ...] = ()
    lora: Path | None = None
    lora_on: str = "dit"

    def notes(self, component: str) -> tuple[list[str], list[Path]]:
        """Return what was done to `component`, in words and in files."""
        lora = self.lora is not None and self.lora_on == component
        words = (["fp8"] if component in self.fp8 else []) + (["lora"] if lora else [])
        return words, [self.lora] if lora and self.lora is not None else []

    def apply(self, pipe: BasePipeline) -> None:
        """Do it to those components of `pipe` that are loaded."""
        if self.lora is not None and self.lora_on in pipe.components:
            fuse_lora(pipe, self.lora, self.lora_on)
        for name in self.fp8:
            if name in pipe.components:
                store_in_fp8(pipe.component(name), pipe.torch_dtype)


@dataclass(frozen=True)
class EncodePlan:
    """All that the first stage needs to know but the dataset and the folder."""

    resolved: ResolvedModel
    shell: BasePipeline  # the pipeline without any component
    stages: Stages
    recipe: Recipe
    altered: WeightEdits
    dtype: torch.dtype

    def load(self, components: Sequence[str]) -> BasePipeline:
        """Return the pipeline with `components`, as the recipe says."""
        if not components:
            return self.shell
        pipe = self.resolved.load_pipeline(torch_dtype=self.dtype, device=self.shell.device, only=components)
        self.altered.apply(pipe)
        # The units' view of where in a run they are must be that of training.
        pipe.scheduler.set_timesteps(training=True)
        return pipe

    def fill(self, cache: Path, dataset: UnifiedDataset, how: EncodeSettings, progress: Progress) -> CacheResult:
        """Make `cache` hold an entry for each row of `dataset`."""
        return encode_dataset(cache, dataset, Encoder(self.shell, self.stages, self.recipe, self.load), how, progress)


def empty_pipeline(resolved: ResolvedModel, dtype: torch.dtype, device: Any) -> BasePipeline:
    """Return the pipeline of a model without any component of its own: its units can be asked, not run."""
    shell = empty_pipeline_of_family(resolved.family, dtype, device, resolved.parts)
    return resolved.with_side_network(shell)


def empty_pipeline_of_family(
    family: Family, dtype: torch.dtype, device: Any, parts: ModelParts | None = None
) -> BasePipeline:
    """Return the pipeline of a family without any component, for a model that consists of `parts` (None: of all)."""
    parts = parts or family.parts()
    about: dict[str, Any] = {"torch_dtype": dtype, "device": device, "parts": parts}
    pipe = pipeline_class(family)({}, None, family.schedule, **about).eval()
    pipe.scheduler.set_timesteps(training=True)
    return pipe


def plan_encoding(
    resolved: ResolvedModel,
    options: TrainOptions | CacheOptions,
    task: str,
    trainable: Sequence[str],
    dtype: torch.dtype,
    device: Any,
) -> EncodePlan:
    """Work out the first stage of `task` on a model."""
    for name in (*trainable, *options.fp8_models):
        resolved.check_component(name)
    shell = empty_pipeline(resolved, dtype, device)
    stages = plan_stages(shell, find_loss(task), trainable)
    altered = weight_edits_of(options)
    split = stages.split
    named = {name: getattr(options, name) for name in ("model", "model_paths", "tokenizer_path")}
    recipe = Recipe(
        family=resolved.family.name,
        task=task,
        trainable=tuple(trainable),
        once=tuple((type(unit).__name__, unit.version) for unit in split.once),
        every_step=tuple(type(unit).__name__ for unit in split.every_step),
        components=identify(resolved, stages.first_components, altered),
        dtype=str(dtype).removeprefix("torch."),
        processing=picture_settings(options, resolved),
        extra_inputs=options.extra_inputs,
        model={
            **named,
            "model": findable(options.model),
            "model_id_with_origin_paths": options.model_id_with_origin_paths,
            "fp8_models": list(altered.fp8),
            "preset_lora_path": str(altered.lora) if altered.lora else None,
            "preset_lora_model": altered.lora_on,
            "template": resolved.side_network.about()["template"] if resolved.side_network is not None else None,
        },
        dataset={
            "dataset_base_path": str(Path(options.dataset_base_path or "").absolute()),
            "dataset_metadata_path": str(options.dataset_metadata_path) if options.dataset_metadata_path else None,
            "data_file_keys": list(options.data_file_keys),
            "column": list(options.column),
            "allow_outside": options.allow_outside,
            "caption_prefix": options.caption_prefix or None,
            "caption_suffix": options.caption_suffix or None,
        },
    )
    return EncodePlan(resolved, shell, stages, recipe, altered, dtype)


def weight_edits_of(options: TrainOptions | CacheOptions) -> WeightEdits:
    """Return what the options have done to weights after loading."""
    if isinstance(options, CacheOptions):
        return WeightEdits(options.fp8_models)
    return WeightEdits(options.fp8_models, options.preset_lora_path, options.preset_lora_model or "dit")


def with_loras(options: TrainOptions, family: Family) -> set[str]:
    """Return the components that the LoRAs of --lora have layers for."""
    names = tuple(component.name for component in family.components)
    return {name for lora in options.lora for name in read_lora(lora.path, names).components}


def refuse_loras_on(options: TrainOptions, family: Family, components: Iterable[str]) -> None:
    """Refuse a LoRA of --lora on a component whose outputs a cache holds: they were made without it."""
    for name in components:
        if name in with_loras(options, family):
            raise UsageError(
                f"--lora changes the {name}, whose outputs are in the cache as they were without it",
                hint="train without a cache, or merge the LoRA into the model first",
            )


def refuse_extra_inputs(names: Sequence[str], resolved: ResolvedModel, task: str) -> None:
    """Refuse an extra input that nothing reads: not the family, its side_network or the task's loss."""
    columns = resolved.side_network.columns if resolved.side_network else ()
    known = (*resolved.family.extra_inputs, *columns, *find_loss(task).columns)
    for name in names:
        if name not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no extra inputs"
            raise unknown_name("extra input", name, known, listing=f"{resolved.family.title} {takes}")


def identify(resolved: ResolvedModel, components: Sequence[str], altered: WeightEdits) -> dict[str, str]:
    """Return the identity of each component's weights, with the files of the readers that its inputs come from."""
    side_network = resolved.side_network
    if side_network is not None and side_network.name in components:
        others = [name for name in components if name != side_network.name]
        return {**identify(resolved, others, altered), side_network.name: side_network.identity}
    if not components:
        return {}
    places = find_component_paths(resolved.family, resolved.configs_of(components), resolved.reader_configs)
    found = {}
    for name in components:
        folder = places.components.get(name)
        if folder is None:
            raise DsctlError(
                f"the first stage needs the {name} of {resolved.family.title}, which was not given",
                hint=f"name its weights too: {resolved.family.component(name).folder}/ in a model folder",
            )
        words, files = altered.notes(name)
        for reader in resolved.family.readers:
            if name in reader.components and reader.name in places.readers:
                files += sorted(path for path in places.readers[reader.name].iterdir() if path.is_file())
        found[name] = identify_weights(folder, files, words)
    return found


def picture_settings(options: TrainOptions | CacheOptions, resolved: ResolvedModel) -> dict[str, Any]:
    """Return what becomes of pictures: without any size given, a native size of the model limits their pixels."""
    native = resolved.defaults.get("max_pixels")
    max_pixels = options.max_pixels if options.given("max_pixels") or native is None else native
    return {
        "height": options.height,
        "width": options.width,
        "max_pixels": None if options.height is not None or options.resolutions else max_pixels,
        "bucket_resolutions": ",".join(options.bucket_resolutions) or None,
        "num_frames": options.num_frames,
        "fps": options.fps,
        "short_clips": options.short_clips,
        "division_factor": resolved.parts.division_factor,
    }


def refuse_varying(dataset: UnifiedDataset) -> None:
    """Refuse to encode once what is drawn anew each time."""
    if dataset.varies():
        raise UsageError(
            "prompts that are drawn anew for every sample (several in a row, or --caption-dropout) cannot be cached",
            hint="give each row one prompt and leave --caption-dropout out, or train without a cache",
        )


def sharing(accelerator: Any, **settings: Any) -> EncodeSettings:
    """Return a first stage that this process shares with the others of `accelerator`."""
    from accelerate.utils import gather_object

    several = accelerator.num_processes > 1
    return EncodeSettings(
        **settings,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
        wait=accelerator.wait_for_everyone,
        **({"gather": gather_object} if several else {}),
    )


def readers_of(options: TrainOptions | CacheOptions) -> int:
    """Return how many threads read pictures ahead."""
    return options.dataset_num_workers or READERS


def refuse_other_files(folder: Path) -> None:
    """Refuse an output folder that has something in it which is no cache."""
    if folder.exists() and not folder.is_dir():
        raise DsctlError(f"{folder} is a file, not a folder", hint="give another --output-path")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / FOLDER).is_dir():
        raise DsctlError(f"{folder} is not empty and holds no cache", hint="give another --output-path")


def findable(model: str | None) -> str | None:
    """Return a model's name so that it is found from every folder: that of a path as an absolute one."""
    return str(Path(model).absolute()) if model is not None and Path(model).is_dir() else model


def open_model(options: CacheOptions | TrainOptions) -> ResolvedModel:
    """Find the model that the options name, with the template that they name."""
    resolved = resolve_model(
        options.model, options.model_paths, options.model_id_with_origin_paths, options.tokenizer_path
    )
    return with_template(resolved, options, options.template)


def with_template(
    resolved: ResolvedModel, options: CacheOptions | TrainOptions, source: TemplateSource | None
) -> ResolvedModel:
    """Return the model with the template `source`, where there is one, as its side_network."""
    if source is None:
        if any(name.split(".")[0] == TEMPLATE for name in options.trained_names):
            raise UsageError(f"{TEMPLATE} is to be trained, but no template is given", hint="give --template DIR too")
        return resolved
    if TEMPLATE in options.fp8_models:
        raise UsageError(f"{TEMPLATE} cannot be stored in float8", hint="name other components in --fp8-models")
    if isinstance(options, TrainOptions) and options.lora_base_model == TEMPLATE:
        raise UsageError(f"{TEMPLATE} cannot get a LoRA", hint=f"train it whole: --trainable-models {TEMPLATE}")
    from dsctl_core.template.training import open_template

    trust, required = Trust(options.trust_template), TEMPLATE_COLUMN in options.extra_inputs
    return replace(resolved, side_network=open_template(source, trust, options.trained_names, required=required))


def make_cache(options: CacheOptions | TrainOptions, progress: Progress) -> CacheResult:
    """Do the first stage as `options` say, in the folder `output_path`; see dsctl_core.stages.encode."""
    refuse_other_files(options.output_path)
    resolved = open_model(options)
    task = options.loss_task if isinstance(options, TrainOptions) else options.task
    refuse_extra_inputs(options.extra_inputs, resolved, task)
    dataset = build_dataset(options, resolved.family, resolved.defaults, resolved.parts.division_factor)
    refuse_varying(dataset)
    if options.on_bad_sample == "stop":
        refuse_unreadable(dataset, find_loss(task))
    accelerator = make_accelerator(options.device, options.mixed_precision)
    if not accelerator.is_main_process:
        progress = NoProgress()
    dtype = float_dtype(accelerator.mixed_precision)
    if isinstance(options, TrainOptions):
        trainable = options.trained_components
        skip_bad = options.on_bad_sample == "skip"
        how = sharing(accelerator, batch_size=options.batch_size, readers=readers_of(options), skip_bad=skip_bad)
    else:
        trainable = options.trained_names
        how = sharing(
            accelerator,
            batch_size=options.batch_size,
            readers=readers_of(options),
            skip_bad=options.on_bad_sample == "skip",
            prune=options.prune,
        )
    job = plan_encoding(resolved, options, task, trainable, dtype, accelerator.device)
    if isinstance(options, TrainOptions):
        refuse_loras_on(options, resolved.family, job.stages.first_components)
    try:
        return job.fill(options.output_path, dataset, how, progress)
    finally:
        accelerator.end_training()
