"""Options of `dsctl dataset`."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dsctl_core.errors import UsageError
from dsctl_core.options.base import Argument, ComposedOptions, Options, Text
from dsctl_core.options.data import ReadingOptions
from dsctl_core.options.effects import NO_ANNOTATOR, Idle


class DatasetValidateOptions(ComposedOptions):
    """Options of `dsctl dataset validate`."""

    panel: ClassVar[str] = "Validation"

    reading: ReadingOptions

    path: Annotated[Path, Argument()] = Field(
        description="Dataset folder, or its table; a TOML file with a [[dataset]] for each of several; or a cache."
    )
    metadata: Path | None = Field(
        None,
        description="Table of the samples. Left out: metadata.* in the folder, or captions beside files.",
    )
    model: Text | None = Field(
        None,
        description="Preset or model folder to check for: sizes, the longest prompt, and how large a cache would be.",
    )
    strict: bool = Field(False, description="Let warnings count as errors.")
    report: Path | None = Field(None, description="Write a page with the problems, charts and pictures: FILE.html.")
    workers: Annotated[int, Field(ge=1, le=256)] | None = Field(
        None, description="Processes that decode. Left out: one for each core."
    )


DEPTH = "depth"  # the kind of control pictures that a model draws


class DatasetAnnotateOptions(Options):
    """Options of `dsctl dataset annotate`."""

    panel: ClassVar[str] = "Control pictures"
    idle: ClassVar[tuple[Idle, ...]] = (NO_ANNOTATOR,)

    path: Annotated[Path, Argument()] = Field(description="Dataset folder, or its table.")
    kind: Literal["canny", "soft-edge", "gray", "tile", "blur", "depth"] = Field(
        description="What to draw: edges, soft edges, brightness, an eighth of the details, a blur, or depth."
    )
    annotator: Text | None = Field(
        None, description="Model of transformers that estimates depth: a folder, or OWNER/NAME on a hub."
    )
    metadata: Path | None = Field(
        None, description="Table of the samples. Left out: metadata.* in the folder, or captions beside files."
    )

    def check(self) -> None:
        """Raise a UsageError for depth without a model."""
        if self.kind == DEPTH and self.annotator is None:
            raise UsageError(
                "--kind depth is given without --annotator",
                hint="name a model, such as --annotator depth-anything/Depth-Anything-V2-Small-hf",
            )
