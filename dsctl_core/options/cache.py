"""The cache between the two stages of training: making it, and training from it."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from dsctl_core.errors import unknown_name
from dsctl_core.options.base import ComposedOptions, Count, MaxHours, Names, Options
from dsctl_core.options.control import CacheControlOptions
from dsctl_core.options.data import DataOptions
from dsctl_core.options.effects import EACH_ROW_ONCE, NO_DRY_RUN, NO_REMOTE, NO_TEMPLATE, ONE_PROMPT, OTHERS_NEED, Idle
from dsctl_core.options.model import ModelOptions, ModelParts
from dsctl_core.options.mps import refuse_on_mps
from dsctl_core.options.processes import ProcessCountOptions
from dsctl_core.options.quantize import Quantized
from dsctl_core.options.tasks import LOSS_TASKS
from dsctl_core.options.template import MODEL, TemplateOptions
from dsctl_core.remote.address import is_remote


class CacheUseOptions(Options):
    """The cache that training uses, if any."""

    panel: ClassVar[str] = "Cache"
    remote: ClassVar[frozenset[str]] = frozenset({"from_cache"})

    from_cache: Path | None = Field(
        None,
        description="Train from this cache, made by `dsctl cache`, in place of a dataset. It says which model. "
        "An address, such as s3://bucket/folder, is read by way of local copies.",
    )
    cache: bool = Field(
        True, description="Where samples repeat, encode each once and keep that in the output folder: the same numbers."
    )


class CacheOptions(ComposedOptions):
    """Options of `dsctl cache`."""

    panel: ClassVar[str] = "Cache"
    remote: ClassVar[frozenset[str]] = frozenset({"output_path"})
    idle: ClassVar[tuple[Idle, ...]] = (ONE_PROMPT, EACH_ROW_ONCE, OTHERS_NEED, NO_REMOTE, NO_DRY_RUN)

    weights: ModelOptions
    data: DataOptions
    templates: TemplateOptions
    controls: CacheControlOptions
    processes: ProcessCountOptions

    output_path: Path = Field(
        description="Folder of the cache, or its address, such as s3://bucket/folder. One that is there is continued "
        "or brought up to date."
    )
    task: str = Field("sft", description=f"Task that the cache is for: {', '.join(LOSS_TASKS)}.")
    trainable_models: Names = Field(
        ("dit",),
        min_length=1,
        description="Components that will be trained, whole or by a LoRA; they are not loaded. "
        "Left out with --template: template_model.",
    )
    batch_size: Count = Field(1, description="Samples that are encoded at once. 1 gives the numbers of `dsctl train`.")
    shared: bool = Field(
        False,
        description="Share the work with commands like this that write to the same folder or address, here or on other "
        "machines.",
    )
    max_hours: MaxHours | None = Field(
        None,
        description="End after this many hours from the start of the command, with the exit code 75 if something is "
        "left to encode. What is encoded is kept.",
    )
    prune: bool = Field(False, description="Remove from the folder what no row of the dataset needs any more.")
    mixed_precision: Literal["no", "bf16", "fp16"] | None = Field(
        None, description="Precision of encoding and of what is kept. Left out: bf16 on a GPU that has it, else no."
    )
    fp8_models: ModelParts = Field(
        (),
        description="Components to hold in fp8 while encoding: names, or weights as given for the model.",
    )
    quantize: Quantized = Field(
        (),
        description="Components to hold in 4 or 8 bits while encoding: dit=nf4,text_encoder=int8. Formats: int8, "
        "float8, nf4 (which needs bitsandbytes).",
    )
    device: Literal["cpu", "cuda", "mps"] | None = Field(
        None, description="mps is an Apple GPU. Left out: an NVIDIA GPU if there is one, else the CPU."
    )
    dry_run: bool = Field(
        False, description="Say what encoding would take of memory and disk, without loading weights, and stop."
    )
    dry_run_nodes: Count | None = Field(
        None,
        description="With --dry-run: say what so many commands that share the work read, write and ask of stores, and "
        "how long reading takes. Left out: 1.",
    )

    @property
    def all_local(self) -> bool:
        """Whether nothing is read or written at an address, as far as the options tell."""
        return self.data.all_local and not is_remote(self.output_path)

    @property
    def trained_names(self) -> tuple[str, ...]:
        """Names of the components and modules that will be trained."""
        by_default = self.templates.template is not None and not self.given("trainable_models")
        return (MODEL,) if by_default else self.trainable_models

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str) -> str:
        if task not in LOSS_TASKS:
            raise unknown_name("task", task, LOSS_TASKS)
        return task

    def check(self) -> None:
        """Raise a UsageError where there is nothing to encode, or nothing to trust."""
        self.data.require_dataset()
        several = (self.processes.num_processes or 1) > 1
        given = {"--fp8-models": self.fp8_models, "--quantize": self.quantize, "--num-processes": several}
        refuse_on_mps(self.device, given, precisions={"--mixed-precision": self.mixed_precision})
        NO_TEMPLATE.check(self.templates)
