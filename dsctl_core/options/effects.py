"""Declare which options have no effect in which kind of run: given there, each of them is a usage error.

"Given" is known from parsing, not from values: `--caption-dropout 0` is given, and a default is not. An option that is
in no entry of this table has an effect in every run of its command.

Some kinds show in the options themselves (`when`); the option models list these as `idle` and check them. Others show
in the model, the cache or the files alone (`when` is None): whoever opens those calls `refuse`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dsctl_core.errors import UsageError

if TYPE_CHECKING:
    from dsctl_core.options.base import Options


@dataclass(frozen=True)
class Idle:
    """Options without effect in one kind of run.

    `why` and `hint` may have names in braces: `{flag}` is the option as it is written, and `refuse` takes the others.

    Args:
        names: The options.
        why: Completes "--x has no effect".
        hint: What to do instead.
        when: Tells from the options whether a run is of this kind; None if only its files tell.
        by: The option that makes them idle: where it is a flag, the keys of a run.toml give way to it.
    """

    names: tuple[str, ...]
    why: str
    hint: str
    when: Callable[[Any], bool] | None = None
    by: str | None = None

    def check(self, options: Options) -> None:
        """Raise a UsageError where `options` are of this kind and ask for one of these options."""
        # The kind is asked for last: to know it can take a look at all files of a dataset.
        if self.when is not None and any(map(options.asks_for, self._own(options))) and self.when(options):
            self.refuse(options)

    def refuse(self, options: Options, **facts: object) -> None:
        """Raise a UsageError for the first of these options that `options` ask for."""
        for name in self._own(options):
            if options.asks_for(name):
                words: dict[str, object] = {**options.flat_values(), **facts, "flag": options.written(name)}
                problem = f"{words['flag']} has no effect {self.why.format_map(words)}"
                raise UsageError(problem, hint=self.hint.format_map(words))

    def _own(self, options: Options) -> list[str]:
        """Return those of the options that `options` has."""
        fields = options.flat_fields()
        return [name for name in self.names if name in fields]


# Training and caches. The first stage (task ...:data_process) takes the options of the run that follows it.
ENCODED = Idle(
    (
        *("dataset_metadata_path", "column", "allow_outside", "caption_prefix", "caption_suffix", "on_bad_sample"),
        "mask_from_alpha",
    ),
    "on training from a cache: its samples were read and encoded when it was made",
    "leave it out, or make another cache with it: `dsctl cache {flag} ...`",
    when=lambda options: options.cache_folder is not None,
    by="from_cache",
)
ENCODED_ONCE = Idle(
    ("caption_dropout",),
    "on training from a cache, which has each prompt as it was encoded",
    "leave it out, or train from the dataset: --dataset-base-path FOLDER",
    when=lambda options: options.cache_folder is not None,
    by="from_cache",
)
OWN_CACHE = Idle(
    ("cache",),
    "on training from a cache that is there already",
    "leave it out, or train from the dataset: --dataset-base-path FOLDER",
    when=lambda options: options.cache_folder is not None,
    by="from_cache",
)
TOKENIZER_OF_CACHE = Idle(
    ("tokenizer_path",),
    "on training from a cache without a model: the cache says with which model and tokenizer it was made",
    "leave it out, or name the model too, to compare it with the cache",
    when=lambda options: options.cache_folder is not None and not options.weights.names_model,
    by="from_cache",
)
TRAINS_NOTHING = Idle(
    ("track", "sample_every", "validation_split", "mirror"),
    "on {task}, which trains nothing",
    "leave {flag} out",
    when=lambda options: options.first_stage,
)
CONTINUES_BY_ITSELF = Idle(
    ("resume",),
    "on {task}",
    "leave it out: a cache goes on from where it is",
    when=lambda options: options.first_stage,
)
ALWAYS_A_CACHE = Idle(
    ("from_cache", "cache", "dry_run"),
    "on {task}, which makes a cache and nothing else",
    "leave {flag} out, or give the task without its stage",
    when=lambda options: options.first_stage,
)
NO_DRY_RUN = Idle(
    ("dry_run_nodes",),
    "without --dry-run",
    "give --dry-run too",
    when=lambda options: not options.dry_run,
)
IN_ONE_PROCESS = Idle(
    ("accelerate_config",),
    "on a dry run, which reckons with one process",
    "leave it out; with --num-processes N the dry run says the steps of N processes",
    when=lambda options: options.memory.dry_run,
)
ONE_PROMPT = Idle(
    ("caption_dropout",),
    "on a cache, which has each prompt as it is encoded once",
    "leave it out, and train without a cache: `dsctl train {flag} ...`",
    when=lambda options: True,
)
OTHERS_NEED = Idle(
    ("prune",),
    "with --shared, where other commands may still need what this one does not",
    "leave it out, and prune when all are done: `dsctl cache --prune` without --shared",
    when=lambda options: options.shared,
)
EACH_ROW_ONCE = Idle(
    ("dataset_repeat",),
    "on a cache, which has every row once",
    "give it to `dsctl train --from-cache`",
    when=lambda options: True,
)
NOT_STORED = Idle(
    ("use_gradient_checkpointing_offload",),
    "without --use-gradient-checkpointing",
    "give --use-gradient-checkpointing too",
    when=lambda options: not options.use_gradient_checkpointing,
)
NOT_BATCHED = Idle(
    ("group_by_prompt_length",),
    "on batches of one sample",
    "give --batch-size 4 too",
    when=lambda options: options.batch_size == 1,
)
NOT_CHECKPOINTED = Idle(
    ("gradient_checkpointing_blocks",),
    "without --use-gradient-checkpointing",
    "give --use-gradient-checkpointing too",
    when=lambda options: not options.training.use_gradient_checkpointing,
)
IN_MAIN_MEMORY = Idle(
    ("offload_blocks",),
    "on a CPU: the weights are in main memory anyway",
    "leave it out",
    when=lambda options: options.training.device == "cpu",
)
FITS_NO_CPU = Idle(
    ("fit",),
    "on a CPU",
    "leave it out, or leave out --device cpu",
    when=lambda options: options.training.device == "cpu",
)
NEW_RUN = Idle(
    ("allow_changed",),
    "without --resume",
    "give --resume latest too",
    when=lambda options: options.resume is None,
)
NO_TEMPLATE = Idle(
    ("trust_template", "template_inputs", "negative_template_inputs"),
    "without --template",
    "give --template DIR too",
    when=lambda options: not options.template,
)
NO_TEMPLATE_TO_TRUST = Idle(
    ("trust_template",),
    "without --template",
    "give --template DIR too",
    when=lambda options: options.cache_folder is None and options.templates.template is None,
)
CACHE_WITHOUT_TEMPLATE = Idle(
    ("trust_template",),
    "without --template: the cache {folder} was made without one",
    "leave it out, or give --template DIR too",
)

NO_CONTROLNET = Idle(
    ("control_image", "control_mask"),
    "without --controlnet",
    "give --controlnet NAME too",
    when=lambda options: not options.controlnet,
)

IN_TABLES = Idle(
    ("dataset_metadata_path",),
    "with several datasets",
    "write metadata = FILE into the [[dataset]]",
    when=lambda options: options.has_tables,
)
NO_REMOTE = Idle(
    ("remote_cache_gb",),
    "on files of this machine that are in no Parquet table: nothing is copied",
    "leave it out, or give the dataset or the cache by its address, such as s3://bucket/folder",
    when=lambda options: options.all_local,
)
NO_MASKS = Idle(
    ("mask_from_alpha",),
    "without --extra-inputs mask",
    "give --extra-inputs mask too",
    when=lambda options: "mask" not in options.extra_inputs,
)

# The optimizer, noise levels, callbacks
NO_WARMUP = Idle(
    ("lr_warmup_steps",),
    "with --lr-scheduler {lr_scheduler}",
    "those with a warm-up are linear, cosine, cosine_with_restarts, polynomial, constant_with_warmup",
    when=lambda options: options.lr_scheduler == "constant",
)
NO_RESTARTS = Idle(
    ("lr_num_cycles",),
    "with --lr-scheduler {lr_scheduler}",
    "it is for cosine_with_restarts",
    when=lambda options: options.lr_scheduler != "cosine_with_restarts",
)
NO_POWER = Idle(
    ("lr_power",),
    "with --lr-scheduler {lr_scheduler}",
    "it is for polynomial",
    when=lambda options: options.lr_scheduler != "polynomial",
)
NOT_NORMAL = Idle(
    ("logit_mean", "logit_std"),
    "with --timestep-sampling {timestep_sampling}",
    "give --timestep-sampling logit_normal too",
    when=lambda options: options.timestep_sampling != "logit_normal",
)
OF_DIFFSYNTH = Idle(
    ("timestep_shift", "loss_weighting"),
    "with --timestep-sampling diffsynth, which has its own",
    "leave out one of the two",
    when=lambda options: options.timestep_sampling == "diffsynth",
)
DRAWS_NO_LEVELS = Idle(
    (
        *("timestep_sampling", "logit_mean", "logit_std", "timestep_shift", "loss_weighting"),
        *("min_timestep_boundary", "max_timestep_boundary"),
    ),
    "on the task {task}, which goes through the levels of inference: none are drawn or weighted",
    "leave it out",
)
NO_SAMPLES = Idle(
    (
        *("sample_prompt", "sample_prompts_file", "sample_negative_prompt", "sample_height", "sample_width"),
        *("sample_steps", "sample_cfg_scale", "sample_seed"),
    ),
    "without --sample-every",
    "give --sample-every 100 too",
    when=lambda options: options.sample_every is None,
)
NO_VALIDATION = Idle(
    ("validation_every",),
    "without --validation-split",
    "give --validation-split 0.1 too",
    when=lambda options: options.validation_split is None,
)
NO_TRACKER = Idle(
    ("track_project",),
    "without a tracker that has projects",
    "give --track wandb too",
    when=lambda options: not options.tracks_projects,
)

# Looking at things, and hubs
WITHOUT_GRAPH = Idle(
    ("trainable_models",), "without --graph", "give --graph too", when=lambda options: not options.graph
)
SEVERAL_DATASETS = Idle(
    ("metadata",), "on {path}, which names several datasets", "write metadata = FILE into the [[dataset]]"
)
OF_A_DATASET = Idle(
    (
        *("data_file_keys", "column", "allow_outside", "height", "width", "max_pixels", "bucket_resolutions"),
        *("num_frames", "fps", "short_clips", "clip_extraction", "metadata", "workers", "recheck"),
    ),
    "on {path}, which is a cache",
    "leave it out, or give the dataset",
)
NO_ANNOTATOR = Idle(
    ("annotator",),
    "on --kind {kind}, which needs no model",
    "leave it out, or give --kind depth or --kind pose",
    when=lambda options: options.kind not in ("depth", "pose"),
)
NO_DETECTOR = Idle(
    ("detector",),
    "on --kind {kind}, which looks for nobody",
    "leave it out, or give --kind pose",
    when=lambda options: options.kind != "pose",
)
ALWAYS_LIKELIEST = Idle(
    ("seed",),
    "at --temperature 0, where the likeliest words are taken",
    "give --temperature 0.7 too",
    when=lambda options: options.temperature == 0,
)
NO_CLIPS = Idle(("num_frames",), "on {path}, which has no clips", "leave it out")
NO_TABLE = Idle(("file_column",), "on {path}, which has no table", "leave it out")
WITHOUT_REPORT = Idle(
    ("model",), "on the cache {path} without --report", "give --report FILE.html too, for its pictures"
)
ONLY_LISTED = Idle(
    ("max_workers",), "with --list, which downloads nothing", "leave it out", when=lambda options: options.list
)
IN_THE_PACKAGE = Idle(
    ("source", "include", "exclude", "revision", "local_dir", "max_workers", "token", "list"),
    "on {what}, which comes with the package: it is in {folder}",
    "leave it out",
)
SERVED = Idle(
    ("output", "csv"),
    "with --serve, which writes nothing",
    "leave it out, or leave out --serve",
    when=lambda options: options.serve,
)
NOT_SERVED = Idle(("port",), "without --serve", "give --serve too", when=lambda options: not options.serve)
