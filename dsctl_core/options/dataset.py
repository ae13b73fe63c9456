"""Options of `dsctl dataset`."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from dsctl_core.options.base import Argument, ComposedOptions, Text
from dsctl_core.options.data import ReadingOptions


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
