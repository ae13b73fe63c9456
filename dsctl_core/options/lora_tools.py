"""Options of `dsctl merge-lora` and `dsctl lora ...`."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dsctl_core.errors import UsageError
from dsctl_core.options.base import Argument, Names, Options, Text
from dsctl_core.options.effects import Idle
from dsctl_core.options.lora import FloatName, LoraFiles, LoraFormatName
from dsctl_core.options.lora_effects import INTO_BASE, INTO_LORA
from dsctl_core.options.messages import on_this_machine
from dsctl_core.options.model import SomeModelOptions, WeightOptions
from dsctl_core.remote.address import is_remote

Rank = Annotated[int, Field(ge=1, le=4096)]


class MergeLoraOptions(SomeModelOptions):
    """Options of `dsctl merge-lora`."""

    panel: ClassVar[str] = "Merging"
    remote: ClassVar[frozenset[str]] = frozenset({"output"})  # with --into lora
    idle: ClassVar[tuple[Idle, ...]] = (INTO_BASE, INTO_LORA)

    lora: LoraFiles = Field((), description="LoRA to merge, FILE or FILE:SCALE. Can be given several times.")
    trained_part: tuple[Path, ...] = Field(
        (),
        description="Trained part to put into the model: weights that `dsctl train --trainable-models dit.MODULE` has "
        "written. Can be given several times.",
    )
    into: Literal["base", "lora"] = Field(
        "base", description="base: a copy of the model with the LoRAs in its weights. lora: one LoRA of them all."
    )
    rank: Rank | None = Field(
        None, description="With --into lora: cut down to this rank. Left out: exact, of the ranks' sum."
    )
    lora_format: LoraFormatName = Field("diffusers", description="With --into lora: key names of the file.")
    lora_dtype: FloatName = Field("float32", description="With --into lora: precision of the file.")
    allow_partial: bool = Field(False, description="Merge a LoRA of which some layers are not in the model.")
    output: Path = Field(description="The new model folder, or with --into lora the LoRA file or its address.")

    def check(self) -> None:
        """Raise a UsageError where there is nothing to merge, or nothing to merge it into."""
        if not self.lora and not (self.trained_part and self.into == "base"):
            raise UsageError("no LoRA is given", hint="give --lora FILE or --lora FILE:SCALE")
        if self.into == "base":
            self.require_model()
            if is_remote(self.output):
                raise on_this_machine("--output", self.output)


class LoraInfoOptions(Options):
    """Options of `dsctl lora info`."""

    file: Annotated[Path, Argument()] = Field(description="A LoRA file, or a folder that peft wrote.")


class _WritingOptions(WeightOptions):
    """Options of every command that writes a LoRA."""

    panel: ClassVar[str] = "Result"
    remote: ClassVar[frozenset[str]] = frozenset({"output"})

    output: Path = Field(description="LoRA file to write, or its address; with the format peft, a folder.")
    lora_dtype: FloatName | None = Field(None, description="Precision of the file. Left out: as it is.")


class LoraConvertOptions(_WritingOptions):
    """Options of `dsctl lora convert`."""

    file: Annotated[Path, Argument()] = Field(description="A LoRA file, or a folder that peft wrote.")
    to: LoraFormatName = Field(description="Format to write.")
    network: Literal["lora"] | None = Field(
        None,
        description="lora: a LoKr or a LoHa as the LoRA with exactly its update, in float32 if nothing else is given. "
        "Left out: as it is.",
    )


class LoraResizeOptions(_WritingOptions):
    """Options of `dsctl lora resize`."""

    file: Annotated[Path, Argument()] = Field(description="A LoRA file, or a folder that peft wrote.")
    rank: Rank = Field(description="Rank to bring the LoRA to; a LoKr or a LoHa becomes the nearest LoRA of it.")
    lora_format: LoraFormatName = Field("diffusers", description="Key names of the file.")


class LoraExtractOptions(Options):
    """Options of `dsctl lora extract`."""

    panel: ClassVar[str] = "Extraction"
    remote: ClassVar[frozenset[str]] = frozenset({"output"})

    base: Path = Field(description="Folder of the model, or of the component, that was trained on.")
    tuned: Path = Field(description="Folder of the model or component, or weight file, that came out of the training.")
    component: Text = Field("dit", description="Component to compare.")
    target_modules: Names | None = Field(
        None, min_length=1, description="Layers to look at, separated by commas. Left out: all linear layers."
    )
    rank: Rank = Field(description="Rank of the LoRA.")
    lora_format: LoraFormatName = Field("diffusers", description="Key names of the file.")
    lora_dtype: FloatName = Field("float32", description="Precision of the file.")
    output: Path = Field(description="LoRA file to write, or its address; with the format peft, a folder.")
