"""Options of the dataset, and of reading its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, field_validator

from dsctl_core.errors import UsageError
from dsctl_core.options.base import Alternative, Count, Names, NumberNames, Options, Side
from dsctl_core.options.datasets import SIZES, DatasetTable, DatasetTables, check_tables, read_tables
from dsctl_core.options.effects import IN_TABLES, NO_MASKS, Idle
from dsctl_core.options.model_effects import SPREAD
from dsctl_core.remote.archives import is_copied


class ReadingOptions(Options):
    """Options for reading the rows and files of a dataset, in every command that has one."""

    panel: ClassVar[str] = "Data"
    exclusive: ClassVar[tuple[Alternative, ...]] = (
        ("height", "max_pixels"),
        ("width", "max_pixels"),
        ("height", "bucket_resolutions"),
        ("width", "bucket_resolutions"),
        ("max_pixels", "bucket_resolutions"),
    )
    idle: ClassVar[tuple[Idle, ...]] = (SPREAD,)

    data_file_keys: Names = Field(
        ("image",), min_length=1, description="Columns that hold files to load, separated by commas."
    )
    column: Names = Field(
        (), description="Columns of another name, as NEW=OLD separated by commas: prompt=caption,image=file."
    )
    allow_outside: bool = Field(False, description="Allow files outside the dataset folder.")
    height: Side | None = Field(
        None, description="Height of every picture or clip, in pixels. Left out, with --width: each keeps its own size."
    )
    width: Side | None = Field(None, description="Width of every picture or clip, in pixels.")
    max_pixels: Count = Field(
        1024 * 1024,
        description="Without --height and --width: a picture or frame with more pixels is scaled down to this. "
        "Left out: the model's own limit, where it has one.",
    )
    bucket_resolutions: NumberNames = Field(
        (), description="Bring pictures to sizes of about 512x512 or 1024x1024 pixels of the nearest shape: 512,1024."
    )
    num_frames: Count | None = Field(None, description="Frames of a video to take. Left out: the model's own number.")
    fps: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        None, description="Frames a second to take from a video. Left out: every frame."
    )
    short_clips: Literal["refuse", "shorten"] = Field(
        "refuse", description="What to do with a video that has fewer frames than asked for."
    )
    clip_extraction: Literal["head", "uniform", "every"] = Field(
        "head",
        description="Which frames of a video to take: the first, frames spread evenly over all of it, or all of them: "
        "every clip that it can be cut into, one after another.",
    )

    remote_cache_gb: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        None,
        description="Most gigabytes of local copies of remote files (s3://, hf://, https://, ...), and of columns of "
        "files in Parquet tables. Left out: DSCTL_REMOTE_CACHE_GB, else 50.",
    )

    @field_validator("column")
    @classmethod
    def _pairs(cls, column: tuple[str, ...]) -> tuple[str, ...]:
        for pair in column:
            new, equals, old = pair.partition("=")
            if not equals or not new.strip() or not old.strip():
                raise UsageError(f"--column is given {pair!r}", hint="write it as NEW=OLD, such as prompt=caption")
        names = [pair.partition("=")[0].strip() for pair in column]
        if len(set(names)) < len(names):
            raise UsageError(f"--column names {','.join(names)}, one of them twice", hint="name each column once")
        return column

    @field_validator("bucket_resolutions")
    @classmethod
    def _sides(cls, resolutions: tuple[str, ...]) -> tuple[str, ...]:
        for text in resolutions:
            if not (text.isdecimal() and 1 <= int(text) <= 16384):
                raise UsageError(
                    f"--bucket-resolutions is given {text!r}, which is no side in pixels",
                    hint="write one or more whole numbers, such as 512,1024",
                )
        return resolutions

    def check(self) -> None:
        """Raise a UsageError for half a size."""
        check_whole_size(self.height, self.width)

    @property
    def columns(self) -> dict[str, str]:
        """Return the renamed columns of `--column`: {new name: name in the table}."""
        pairs = (pair.partition("=") for pair in self.column)
        return {new.strip(): old.strip() for new, _, old in pairs}

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Return the sizes of `--bucket-resolutions` as numbers."""
        return tuple(map(int, self.bucket_resolutions))


class DataOptions(ReadingOptions):
    """Where the samples are and what becomes of their pictures and captions."""

    panel: ClassVar[str] = "Data"
    remote: ClassVar[frozenset[str]] = frozenset({"dataset_base_path", "dataset_metadata_path"})
    idle: ClassVar[tuple[Idle, ...]] = (NO_MASKS, IN_TABLES)
    exclusive: ClassVar[tuple[Alternative, ...]] = (
        ("dataset_base_path", "dataset"),
        ("dataset_base_path", "dataset_config"),
        ("dataset", "dataset_config"),
    )

    dataset_base_path: Path | None = Field(
        None,
        description="Root folder of the dataset, or its address: s3://bucket/folder, gs://, hf://, modelscope://, https://.",
    )
    dataset: DatasetTables = Field(
        (),
        description="One of several datasets, in place of --dataset-base-path. Can be given several times; in run.toml "
        "it is a table [[dataset]].",
    )
    dataset_config: Path | None = Field(
        None, description="TOML file with a table [[dataset]] for each of several datasets."
    )
    dataset_metadata_path: Path | None = Field(
        None,
        description="Table of the samples (csv, json, jsonl or parquet), or its address. "
        "Left out: metadata.* in the root folder, the .txt beside each file, or a pair of folders.",
    )
    dataset_repeat: Count = Field(1, description="How many times an epoch goes over the dataset.")
    dataset_num_workers: Annotated[int, Field(ge=0, le=256)] | None = Field(
        None,
        description="Processes that read samples ahead; 0 reads them in between. Left out: in between on a CPU; for a "
        "GPU up to 4, and a thread for a cache.",
    )
    extra_inputs: Names = Field((), description="Columns that the pipeline needs beside image and prompt.")
    mask_from_alpha: bool = Field(
        False, description="With --extra-inputs mask: what is transparent in a picture does not count in the loss."
    )
    caption_prefix: str = Field("", description="Words before every caption, such as a trigger word.")
    caption_suffix: str = Field("", description="Words after every caption.")
    caption_dropout: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Share of the samples that are trained with an empty prompt."
    )
    recheck: bool = Field(
        False,
        description="Read every file of the dataset, or of the cache, at the start, whatever is remembered of them.",
    )
    on_bad_sample: Literal["stop", "skip"] = Field(
        "stop", description="What to do with a row that cannot be used: stop, or go on without it."
    )

    def require_dataset(self) -> None:
        """Raise a UsageError where no dataset is named."""
        if self.dataset_base_path is None and not self.has_tables:
            raise UsageError(
                "--dataset-base-path is missing", hint="--dataset-base-path takes a path: Root folder of the dataset."
            )

    @property
    def all_local(self) -> bool:
        """Whether a folder or table is named, and nothing is copied of any; what --dataset-config names comes later."""
        tables = [path for table in self.dataset for path in table.paths.values()]
        named = [*filter(None, (self.dataset_base_path, self.dataset_metadata_path, *tables))]
        return bool(named) and self.dataset_config is None and not any(map(is_copied, named))

    @property
    def has_tables(self) -> bool:
        """Whether the datasets are tables, [[dataset]]."""
        return bool(self.dataset) or self.dataset_config is not None

    def tables(self) -> tuple[DatasetTable, ...]:
        """Return the tables of the datasets, read from --dataset-config if they are there; () if there are none."""
        return self.dataset if self.dataset_config is None else read_tables(self.dataset_config)

    def check(self) -> None:
        """Raise a UsageError for half a size, and for tables that do not go together."""
        super().check()
        check_tables(self.dataset)
        for table in self.dataset:
            self.of_table(table)

    def of_table(self, table: DatasetTable) -> DataOptions:
        """Return the options of the dataset of `table` alone: what it leaves out is as these options say."""
        changes = {
            "dataset": (),
            "dataset_config": None,
            "dataset_base_path": table.path,
            "dataset_metadata_path": table.metadata,
            "dataset_repeat": 1,
            **({"caption_prefix": "", "caption_suffix": ""} if table.regularization else {}),
        }
        return with_table(self, table, changes)


AnyReading = TypeVar("AnyReading", bound=ReadingOptions)


def with_table(options: AnyReading, table: DatasetTable, changes: Mapping[str, Any] | None = None) -> AnyReading:
    """Return `options` with the values of `table` over them, and `changes` below those of the table.

    A table that sets a size in one way takes the place of all three ways to set one.
    """
    fields, values = options.flat_fields(), {**options.flat_values(), **(changes or {})}
    given = set(options.given_names()) - set(changes or {}) | {name for name, value in (changes or {}).items() if value}
    own = {name: value for name in fields if (value := getattr(table, name, None)) is not None and name != "dataset"}
    if any(name in own for names in SIZES for name in names):
        for name in (name for names in SIZES for name in names):
            values[name] = fields[name].get_default()
            given.discard(name)
    return type(options).resolved({**values, **own}, {*given, *own})


def check_whole_size(
    height: int | None, width: int | None, height_flag: str = "--height", width_flag: str = "--width"
) -> None:
    """Refuse a height without a width, and the other way round."""
    if (height is None) == (width is None):
        return
    given, value, missing = (height_flag, height, width_flag) if width is None else (width_flag, width, height_flag)
    raise UsageError(f"{given} {value} is given without {missing}", hint=f"give {missing} too, or neither")
