"""Options of the length, precision and output of a training run."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dsctl_core.errors import UsageError
from dsctl_core.options.base import Alternative, Count, MaxHours, Names, Options, Seed, Text
from dsctl_core.options.effects import NEW_RUN, NOT_BATCHED, NOT_STORED, Idle
from dsctl_core.options.model import ModelParts
from dsctl_core.options.quantize import Quantized
from dsctl_core.remote.address import is_remote


class TrainingOptions(Options):
    """Length, precision and memory of a training run. A step is one optimizer update."""

    panel: ClassVar[str] = "Training"
    exclusive: ClassVar[tuple[Alternative, ...]] = (("num_epochs", "max_steps"),)
    idle: ClassVar[tuple[Idle, ...]] = (NOT_STORED, NOT_BATCHED)

    trainable_models: Names | None = Field(
        None,
        min_length=1,
        description="Components to train whole, or modules of them, separated by commas: dit, text_encoder, "
        "dit.proj_out, dit.transformer_blocks.*.attn. Left out, without a LoRA: the part that a model has for that, "
        "if it has one.",
    )
    num_epochs: Count = Field(1, description="How many times to go over the dataset.")
    max_steps: Count | None = Field(None, description="Stop after this many steps, instead of --num-epochs.")
    max_hours: MaxHours | None = Field(
        None,
        description="End with a saved step, or with what is encoded, after this many hours from the start of the "
        "command, with the exit code 75 if steps are left.",
    )
    batch_size: Count = Field(1, description="Samples that go through the model at once.")
    group_by_prompt_length: bool = Field(
        False,
        description="Make batches of prompts of one length, as far as they fill batches: attention needs no mask in "
        "these. For models that mask prompts, and samples that are encoded once.",
    )
    gradient_accumulation_steps: Count = Field(1, description="Batches that make up one step.")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="Gradients longer than this are cut down.")
    seed: Seed = Field(0, description="Seed of everything random: two runs with equal options are equal.")
    mixed_precision: Literal["no", "bf16", "fp16"] | None = Field(
        None, description="Precision of the computation. Left out: that of the cache, else bf16 on a GPU that has it."
    )
    use_gradient_checkpointing: bool = Field(False, description="Recompute activations to save memory.")
    use_gradient_checkpointing_offload: bool = Field(
        False, description="Keep what gradient checkpointing stores in main memory."
    )
    find_unused_parameters: bool | None = Field(
        None,
        description="On several GPUs: look at each step for trained weights without a gradient, as a few always are; "
        "with --no, there may be none. Left out: look once where each step has the same weights, else at each.",
    )
    fp8_models: ModelParts = Field(
        (),
        description="Frozen components to hold in fp8: their names, or their weights as given for the model.",
    )
    quantize: Quantized = Field(
        (),
        description="Frozen components to hold in 4 or 8 bits: dit=nf4,text_encoder=int8. Formats: int8, "
        "float8, nf4 (which needs bitsandbytes).",
    )
    device: Literal["cpu", "cuda", "mps"] | None = Field(
        None, description="mps is an Apple GPU. Left out: an NVIDIA GPU if there is one, else the CPU."
    )


class OutputOptions(Options):
    """The outputs of a run: where they are written, and how often."""

    panel: ClassVar[str] = "Output"
    remote: ClassVar[frozenset[str]] = frozenset({"mirror", "output_path"})  # the latter in the first stage alone
    idle: ClassVar[tuple[Idle, ...]] = (NEW_RUN,)

    output_path: Path = Field(
        description="Folder for the results. Without --resume it must hold no cache, and no run with a checkpoint. "
        "Of a task ...:data_process the folder of the cache, or its address."
    )
    mirror: Path | None = Field(
        None,
        description="Address, such as s3://bucket/folder, to which the output folder is copied while the run goes on: "
        "weights, states, metrics and samples. --resume goes on from there where it is ahead of the folder.",
    )
    save_steps: Count | None = Field(None, description="Save every this many steps. Left out: after every epoch.")
    remove_prefix_in_ckpt: Text | None = Field(
        None, description="Prefix to take off the names of saved weights, such as pipe.dit."
    )
    state_total_limit: Count = Field(
        2, description="Keep this many states to resume from; one is saved whenever weights are."
    )
    resume: Text | None = Field(
        None,
        description="Go on with a run, to the bit: latest, from its newest state; auto, the same, or from the start "
        "where there is none; or the folder of a state.",
    )
    allow_changed: Names = Field(
        (),
        description="With --resume: options that may differ from those of the run so far though results change, "
        "separated by commas.",
    )

    def check(self) -> None:
        """Raise a UsageError for a mirror on this machine."""
        if self.mirror is not None and not is_remote(self.mirror):
            raise UsageError(
                f"--mirror is {str(self.mirror)!r}, which is no address", hint="write it as s3://bucket/folder"
            )
