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
