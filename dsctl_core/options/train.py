"""All options of `dsctl train`."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from dsctl_core.errors import UsageError, unknown_name
from dsctl_core.options.base import Alternative, Argument, ComposedOptions
from dsctl_core.options.cache import CacheUseOptions
from dsctl_core.options.callbacks import CallbackOptions
from dsctl_core.options.control import ControlOptions
from dsctl_core.options.data import DataOptions
from dsctl_core.options.effects import (
    ALWAYS_A_CACHE,
    CONTINUES_BY_ITSELF,
    ENCODED,
    ENCODED_ONCE,
    FITS_NO_CPU,
    IN_MAIN_MEMORY,
    IN_ONE_PROCESS,
    NO_REMOTE,
    NO_TEMPLATE_TO_TRUST,
    NOT_CHECKPOINTED,
    OWN_CACHE,
    TOKENIZER_OF_CACHE,
    TRAINS_NOTHING,
    Idle,
)
from dsctl_core.options.lora import LoraOptions
from dsctl_core.options.memory import MemoryOptions
from dsctl_core.options.messages import Spelled, on_this_machine
from dsctl_core.options.model import SomeModelOptions
from dsctl_core.options.mps import refuse_on_mps
from dsctl_core.options.objective import ObjectiveOptions
from dsctl_core.options.optimizer import OptimizerOptions
from dsctl_core.options.processes import ProcessOptions
from dsctl_core.options.tasks import FIRST, LOSS_TASKS, SECOND
from dsctl_core.options.template import MODEL, TemplateOptions
from dsctl_core.options.training import OutputOptions, TrainingOptions
from dsctl_core.remote.address import is_remote

TASKS = tuple(f"{task}{stage}" for task in LOSS_TASKS for stage in ("", FIRST, SECOND))


class TrainOptions(ComposedOptions):
    """Options of `dsctl train`."""

    exclusive: ClassVar[tuple[Alternative, ...]] = (
        ("from_cache", "dataset_base_path"),
        ("from_cache", "dataset"),
        ("from_cache", "dataset_config"),
    )
    idle: ClassVar[tuple[Idle, ...]] = (
        *(ENCODED, ENCODED_ONCE, OWN_CACHE, TOKENIZER_OF_CACHE, NO_TEMPLATE_TO_TRUST, NO_REMOTE),
        *(
            TRAINS_NOTHING,
            CONTINUES_BY_ITSELF,
            ALWAYS_A_CACHE,
            IN_ONE_PROCESS,
            NOT_CHECKPOINTED,
            FITS_NO_CPU,
            IN_MAIN_MEMORY,
        ),
    )

    weights: SomeModelOptions
    data: DataOptions
    caching: CacheUseOptions
    templates: TemplateOptions
    controls: ControlOptions
    training: TrainingOptions
    objective: ObjectiveOptions
    optim: OptimizerOptions
    memory: MemoryOptions
    adapter: LoraOptions
    callbacks: CallbackOptions
    processes: ProcessOptions
    output: OutputOptions

    task: Annotated[str, Argument(), Spelled("--task")] = Field(
        "sft", description=f"What to learn: {', '.join(TASKS)}."
    )

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str) -> str:
        if task not in TASKS:
            raise unknown_name("task", task, TASKS)
        return task

    @property
    def loss_task(self) -> str:
        """The task without its stage."""
        return self.task.partition(":")[0]

    @property
    def first_stage(self) -> bool:
        """Whether only the cache is to be made."""
        return self.task.endswith(FIRST)

    @property
    def cache_folder(self) -> Path | None:
        """The cache to train from. The task `...:train` takes it as the dataset, too."""
        named = self.caching.from_cache
        return self.data.dataset_base_path if named is None and self.task.endswith(SECOND) else named

    @property
    def all_local(self) -> bool:
        """Whether the samples are on this machine, and the cache that is made of them, as far as the options tell."""
        if self.cache_folder is not None:
            return not is_remote(self.cache_folder)
        return self.data.all_local and not is_remote(self.output.output_path)

    @property
    def trained_components(self) -> tuple[str, ...]:
        """Names of the components that are trained, whole, in part or by a LoRA."""
        return tuple(dict.fromkeys(name.split(".")[0] for name in self.trained_names))

    @property
    def trained_names(self) -> tuple[str, ...]:
        """Names of the components and of the modules in them that are trained; in stage one alone, the usual one."""
        return self._named_to_train() or ("dit" if self.templates.template is None else MODEL,)

    @property
    def names_something_to_train(self) -> bool:
        """Whether something to train is named; without it, a model that has a part for that trains this part."""
        return bool(self._named_to_train())

    def _named_to_train(self) -> tuple[str, ...]:
        return (*(self.training.trainable_models or ()), *self.adapter.lora_components)

    def check(self) -> None:
        """Raise a UsageError for options that do not go together."""
        if is_remote(self.output.output_path) and not self.first_stage:
            raise on_this_machine("--output-path", self.output.output_path)
        self._a_model_and_samples()
        self._one_way_to_the_samples()
        self._memory_options_that_go_together()
        self._what_an_apple_gpu_does()
        self._something_to_see()
        self._a_prefix_that_is_there()

    def _a_model_and_samples(self) -> None:
        if self.caching.from_cache is None and not self.task.endswith(SECOND):
            self.weights.require_model()
            self.data.require_dataset()

    def _one_way_to_the_samples(self) -> None:
        if self.task.endswith(SECOND) and self.cache_folder is None:
            raise UsageError(f"{self.task} needs a cache", hint="give --from-cache FOLDER, made by `dsctl cache`")

    def _memory_options_that_go_together(self) -> None:
        memory = self.memory
        clashes = {
            "--compile": memory.compile,
            "--use-dora" if self.adapter.use_dora else "--network dora": self.adapter.kind == "dora",
        }
        for flag, on in clashes.items():
            if on and memory.offload_blocks:
                raise UsageError(
                    f"--offload-blocks and {flag} are both given, and cannot be combined", hint="give one of them"
                )
            if on and memory.float8 and "dora" in flag:  # which reads the weights that are held in float8
                raise UsageError(f"--float8 and {flag} are both given, and cannot be combined", hint="give one of them")
        if memory.float8 and not memory.compile:
            raise UsageError(
                "--float8 is given without --compile, and would take longer than bf16: what is rounded at each step is "
                "then rounded by many kernels",
                hint="give --compile too",
            )
        if memory.compile and self.controls.controlnet:
            raise UsageError(
                "--compile and --controlnet are both given, and cannot be combined", hint="leave --compile out"
            )

    def _what_an_apple_gpu_does(self) -> None:
        training, memory, processes = self.training, self.memory, self.processes
        given = {
            "--fp8-models": training.fp8_models,
            "--quantize": training.quantize,
            "--compile": memory.compile,
            "--offload-blocks": memory.offload_blocks,
            "--use-gradient-checkpointing-offload": training.use_gradient_checkpointing_offload,
            "--fit": memory.fit,
            "--dry-run": memory.dry_run,
            "--num-processes": (processes.num_processes or 1) > 1,
            "--accelerate-config": processes.accelerate_config,
        }
        refuse_on_mps(training.device, given, precisions={"--mixed-precision": training.mixed_precision})

    def _something_to_see(self) -> None:
        callbacks = self.callbacks
        prompted = callbacks.sample_prompt or callbacks.sample_prompts_file is not None
        if callbacks.sample_every is not None and self.cache_folder is not None and not prompted:
            raise UsageError(
                "--sample-every is given without a prompt, and a cache has no captions to take one from",
                hint='give --sample-prompt "..." or --sample-prompts-file FILE',
            )

    def _a_prefix_that_is_there(self) -> None:
        """Refuse a prefix that no trained weight has: its name would silently stay as it is."""
        components = dict.fromkeys(name.split(".")[0] for name in self._named_to_train())
        prefixes, given = [f"pipe.{name}." for name in components], self.output.remove_prefix_in_ckpt
        if given and prefixes and not any(prefix.startswith(given) or given.startswith(prefix) for prefix in prefixes):
            problem = f"--remove-prefix-in-ckpt is {given!r}, which no trained weight's name begins with"
            raise UsageError(problem, hint=f"give {' or '.join(prefixes)}")
