"""All options of `dsctl train`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from dsctl_core.errors import UsageError, unknown_name
from dsctl_core.options.base import Argument
from dsctl_core.options.data import DataOptions
from dsctl_core.options.lora import LoraOptions
from dsctl_core.options.model import ModelOptions
from dsctl_core.options.training import OutputOptions, TrainingOptions

TASKS = ("sft",)


class TrainOptions(OutputOptions, LoraOptions, TrainingOptions, DataOptions, ModelOptions):
    """Options of `dsctl train`."""

    task: Annotated[str, Argument()] = Field("sft", description=f"What to learn: {', '.join(TASKS)}.")

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str) -> str:
        if task not in TASKS:
            raise unknown_name("task", task, TASKS)
        return task

    @model_validator(mode="after")
    def _something_to_train(self) -> Self:
        if not self.wants_lora and self.trainable_models is None:
            raise UsageError(
                "nothing to train is given",
                hint="give --lora-rank 32 for a LoRA, or --trainable-models dit for the whole dit",
            )
        return self

    @model_validator(mode="after")
    def _a_prefix_that_is_there(self) -> Self:
        """Refuse a prefix that no trained weight has: its name would silently stay as it is."""
        lora_on = [self.lora_base_model or "dit"] if self.wants_lora else []
        components = dict.fromkeys(name.split(".")[0] for name in (*(self.trainable_models or ()), *lora_on))
        prefixes, given = [f"pipe.{name}." for name in components], self.remove_prefix_in_ckpt
        if given and not any(prefix.startswith(given) or given.startswith(prefix) for prefix in prefixes):
            problem = f"--remove-prefix-in-ckpt is {given!r}, which no trained weight's name begins with"
            raise UsageError(problem, hint=f"give {' or '.join(prefixes)}")
        return self
