"""Which dataset, and how its pictures are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, model_validator
from typing_extensions import Self

from dsctl_core.errors import UsageError
from dsctl_core.options.base import Alternative, Count, Names, Options, Side


class DataOptions(Options):
    """Where the samples are and what becomes of their pictures."""

    panel: ClassVar[str] = "Data"
    exclusive: ClassVar[tuple[Alternative, ...]] = (("height", "max_pixels"), ("width", "max_pixels"))

    dataset_base_path: Path | None = Field(None, description="Root folder of the dataset.")
    dataset_metadata_path: Path | None = Field(
        None, description="Table of the samples (csv, json or jsonl). Left out: metadata.* in the root folder."
    )
    dataset_repeat: Count = Field(1, description="How many times an epoch goes over the dataset.")
    dataset_num_workers: Annotated[int, Field(ge=0, le=256)] = Field(
        0, description="Processes that read samples ahead; 0 reads them in between."
    )
    data_file_keys: Names = Field(
        ("image",), min_length=1, description="Columns that hold files to load, separated by commas."
    )
    extra_inputs: Names = Field((), description="Columns that the pipeline needs beside image and prompt.")
    height: Side | None = Field(
        None, description="Height of every picture, in pixels. Left out, with --width: each keeps its own size."
    )
    width: Side | None = Field(None, description="Width of every picture, in pixels.")
    max_pixels: Count = Field(
        1024 * 1024, description="Without --height and --width: a picture with more pixels is scaled down to this."
    )

    @property
    def needs_dataset(self) -> bool:
        """Whether a dataset has to be named."""
        return True

    @model_validator(mode="after")
    def _some_dataset(self) -> Self:
        if self.dataset_base_path is None and self.needs_dataset:
            raise UsageError(
                "--dataset-base-path is missing", hint="--dataset-base-path takes a path: Root folder of the dataset."
            )
        return self

    @model_validator(mode="after")
    def _whole_size(self) -> Self:
        check_whole_size(self.height, self.width)
        return self


def check_whole_size(height: int | None, width: int | None) -> None:
    """Refuse a height without a width, and the other way round."""
    if (height is None) == (width is None):
        return
    given, value, missing = ("--height", height, "--width") if width is None else ("--width", width, "--height")
    raise UsageError(f"{given} {value} is given without {missing}", hint=f"give {missing} too, or neither")
