"""What is trained: a LoRA, whole components, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, model_validator
from typing_extensions import Self

from dsctl_core.errors import UsageError
from dsctl_core.options.base import Names, Options, Text


class LoraOptions(Options):
    """The LoRA to train, and one to merge in before."""

    panel: ClassVar[str] = "LoRA"

    lora_base_model: Text | None = Field(None, description="Component that the LoRA is put on. Left out: dit.")
    lora_target_modules: Names | None = Field(
        None, min_length=1, description="Layers that the LoRA is put on, separated by commas. Left out: the family's."
    )
    lora_rank: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None, description="Rank of the LoRA. Alone it means a LoRA on the dit with the family's layers. Left out: 32."
    )
    lora_alpha: Annotated[float, Field(gt=0)] | None = Field(
        None, description="The LoRA counts alpha / rank times. Left out: the rank."
    )
    lora_checkpoint: Path | None = Field(None, description="LoRA file to train on from.")
    preset_lora_path: Path | None = Field(
        None, description="LoRA file to merge into the model before training, so that the difference is learned."
    )
    preset_lora_model: Text | None = Field(
        None, description="Component that --preset-lora-path is merged into. Left out: dit."
    )

    @property
    def wants_lora(self) -> bool:
        """Whether a LoRA is to be trained."""
        asked = (self.lora_base_model, self.lora_target_modules, self.lora_rank, self.lora_checkpoint)
        return any(value is not None for value in asked)

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Self:
        if self.lora_alpha is not None and not self.wants_lora:
            raise UsageError(f"--lora-alpha {self.lora_alpha:g} is given, but no LoRA", hint="give --lora-rank too")
        if self.preset_lora_model is not None and self.preset_lora_path is None:
            raise UsageError(
                f"--preset-lora-model {self.preset_lora_model} is given without a LoRA to merge",
                hint="give --preset-lora-path FILE too",
            )
        return self
