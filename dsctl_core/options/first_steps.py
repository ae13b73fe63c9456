"""Options of the commands that write a run.toml: `dsctl import` and `dsctl init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from dsctl_core.errors import UsageError
from dsctl_core.options.base import Argument, Options, Text


def _a_toml(output: Path) -> Path:
    if output.suffix.lower() != ".toml":
        raise UsageError(f"--output is {str(output)!r}, which is no TOML", hint="give it a name that ends in .toml")
    return output


class ImportOptions(Options):
    """Options of `dsctl import`."""

    panel: ClassVar[str] = "Import"

    files: Annotated[tuple[Path, ...], Argument()] = Field(
        min_length=1,
        description="The files of one training: a shell script, a YAML file, or TOML files of dataset and training.",
    )
    output: Path = Field(Path("run.toml"), description="File to write, which must not be there.")

    @field_validator("output")
    @classmethod
    def _written_as_toml(cls, output: Path) -> Path:
        return _a_toml(output)


class InitOptions(Options):
    """Options of `dsctl init`."""

    panel: ClassVar[str] = "Init"

    folder: Annotated[Path, Argument()] = Field(description="Folder of pictures or clips, with their captions.")
    model: Text | None = Field(
        None, description="Preset or model folder to train. Left out: by the memory of the GPU, embedded without one."
    )
    output: Path = Field(Path("run.toml"), description="File to write, which must not be there.")

    @field_validator("output")
    @classmethod
    def _written_as_toml(cls, output: Path) -> Path:
        return _a_toml(output)
