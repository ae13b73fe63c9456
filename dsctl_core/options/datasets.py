"""Several datasets in one run: the tables `[[dataset]]` of run.toml, or of the file of --dataset-config."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializationInfo, ValidationError, model_serializer

from dsctl_core.errors import UsageError, unknown_name
from dsctl_core.options.base import Count, Names, NumberNames, Side, Text
from dsctl_core.options.messages import EMPTY_PATH, Takes, explain_value, is_empty_path, takes_paths
from dsctl_core.options.objective import Boundary
from dsctl_core.remote.address import refuse_secrets, shown

KEY = "dataset"  # of the tables, in a file
FORM = 'a JSON object such as {"path": "photos", "repeat": 2}; in a file, a table [[dataset]]'
SIZES = (("height", "width"), ("max_pixels",), ("bucket_resolutions",))  # three ways to set a size


class DatasetTable(BaseModel):
    """One of several datasets of a run. What is None is as the options of the run say."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)
    form: ClassVar[str] = "JSON"

    path: Path = Field(description="Root folder of the dataset.")
    name: Text | None = Field(None, description="Its name in messages and metrics. Left out: that of the folder.")
    metadata: Path | None = Field(None, description="Its table. Left out: as with --dataset-metadata-path.")
    data_file_keys: Names | None = Field(None, min_length=1, description="Its columns of files, if it lacks some.")
    column: Names | None = Field(None, description="Its columns of another name, as NEW=OLD.")
    repeat: Count | None = Field(None, description="How many times an epoch has each of its rows. Left out: once.")
    weight: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        None, description="Its share of the samples, beside the weights of the others; in place of repeats."
    )
    caption: Text | None = Field(None, description="The caption of every row, in place of its own.")
    caption_prefix: str | None = Field(None, description="Words before every caption.")
    caption_suffix: str | None = Field(None, description="Words after every caption.")
    caption_dropout: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Share of its samples that are trained with an empty prompt."
    )
    height: Side | None = Field(None, description="Height of its pictures.")
    width: Side | None = Field(None, description="Width of its pictures.")
    max_pixels: Count | None = Field(None, description="Its larger pictures are scaled down to this.")
    bucket_resolutions: NumberNames | None = Field(None, min_length=1, description="Sizes of its buckets.")
    num_frames: Count | None = Field(None, description="Frames of its videos.")
    fps: Annotated[float, Field(gt=0, le=1000)] | None = Field(None, description="Frames a second of its videos.")
    clip_extraction: Literal["head", "uniform", "every"] | None = Field(
        None, description="Which frames of its videos: the first, spread evenly, or every clip."
    )
    mask_from_alpha: bool | None = Field(None, description="Whether its alpha channels are masks.")
    min_timestep_boundary: Boundary | None = Field(None, description="Its noisiest levels: 0 is noise.")
    max_timestep_boundary: Boundary | None = Field(None, description="Its cleanest levels: 1 is the clean picture.")
    loss_weight: Annotated[float, Field(gt=0, le=1000)] = Field(1.0, description="How much its loss counts.")
    regularization: bool = Field(
        False,
        description="Keeps what the model can do: no words of the run are added to its captions, and no row of "
        "it is held out for validation or drawn as a sample.",
    )
    target: Literal["data", "base"] = Field(
        "data", description="What is learned of it: its pictures, or what the model predicts for them without the LoRA."
    )

    @model_serializer(mode="wrap")
    def _given(self, handler: Any, info: SerializationInfo) -> dict[str, Any]:
        """Leave out what has its default, so that a table is written as it was; addresses with both slashes."""
        fields = type(self).model_fields
        own = {name: value for name, value in handler(self).items() if getattr(self, name) != fields[name].default}
        if info.mode != "json":
            return own
        return {**own, **{name: shown(path) for name, path in self.paths.items() if name in own}}

    @property
    def paths(self) -> dict[str, Path]:
        """The folder and the table, if it names one, by the keys that name them."""
        return {"path": self.path, **({} if self.metadata is None else {"metadata": self.metadata})}

    @property
    def label(self) -> str:
        """Its name, or that of its folder."""
        return self.name or self.path.absolute().name

    @classmethod
    def parse(cls, value: Any) -> DatasetTable:
        """Read a table, or its JSON text. Raises UsageError, with the names of the table and of the key."""
        from dsctl_core.files.json import decode_option

        if isinstance(value, DatasetTable):
            return value
        given = decode_option(value) if isinstance(value, str) else value
        if not isinstance(given, dict):
            raise ValueError("this is no table" if not isinstance(value, str) else "this is no JSON object")
        table = f"[[{KEY}]] {given.get('name') or given.get('path', '')}".rstrip()
        for name in given:
            if name not in cls.model_fields:
                raise unknown_name(f"key of {table}", str(name), list(cls.model_fields))
            if isinstance(given[name], str) and takes_paths(cls.model_fields[name]):
                refuse_secrets(given[name])
            if is_empty_path(cls.model_fields[name], given[name]):
                raise UsageError(f"{name} of {table} is '': {EMPTY_PATH}", hint=f"{name} takes a path")
        try:
            # As JSON, in which a path may be text and a tuple a list, also strictly: "16" is no number.
            found = cls.model_validate_json(json.dumps(given), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = str(first["loc"][0])
            raise explain_value(f"{name} of {table}", cls.model_fields[name], first) from None
        found._check(table)
        return found

    def _check(self, table: str) -> None:
        """Raise a UsageError for keys that do not go together."""
        given = [names for names in SIZES if any(getattr(self, name) is not None for name in names)]
        if len(given) > 1:
            raise UsageError(
                f"{given[0][0]} and {given[1][0]} of {table} are both given", hint="there are three ways to set a size"
            )
        if (self.height is None) != (self.width is None):
            raise UsageError(f"{table} has half a size", hint="give height and width, or neither")
        if self.repeat is not None and self.weight is not None:
            raise UsageError(f"repeat and weight of {table} are both given", hint="give one of them")
        low, high = self.min_timestep_boundary or 0.0, self.max_timestep_boundary
        if low >= (1.0 if high is None else high):
            raise UsageError(f"the timestep boundaries of {table} leave no level", hint="0 is noise, 1 the picture")
        if self.target == "base" and not self.regularization:
            raise UsageError(f'target = "base" has no effect in {table}', hint="give regularization = true too")
        if not self.label.isprintable() or "," in self.label or not self.label.strip():
            raise UsageError(f"{table} has a name that cannot be written in a list", hint="give it a name")


DatasetTables = Annotated[tuple[Annotated[DatasetTable, BeforeValidator(DatasetTable.parse)], ...], Takes(FORM)]


def read_tables(file: Path, flag: str = "--dataset-config") -> tuple[DatasetTable, ...]:
    """Return the tables `[[dataset]]` in a TOML file, which has nothing else.

    Raises DsctlError for a file that cannot be read, and UsageError for what is in it.
    """
    from dsctl_core.options.config_file import read_toml

    values = read_toml(file, flag, tables=(KEY,))
    for key in values:
        if key != KEY:
            raise UsageError(
                f"{flag} {file} has the key {key!r} beside its tables [[{KEY}]]",
                hint="write the options of the run into the file of --config",
            )
    tables = values.get(KEY)
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{flag} {file} has no tables", hint=f'write [[{KEY}]] and below it path = "FOLDER"')
    found = tuple(DatasetTable.parse(table) for table in tables)
    check_tables(found)
    return found


def check_tables(tables: Sequence[DatasetTable]) -> None:
    """Raise a UsageError for tables that do not go together."""
    labels = [table.label for table in tables]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"two [[{KEY}]] are called {label}", hint=f'give each a name: name = "{label}-2"')
    weighted = [table.label for table in tables if table.weight is not None]
    if weighted and len(weighted) < len(tables):
        other = next(label for label in labels if label not in weighted)
        raise UsageError(
            f"[[{KEY}]] {weighted[0]} has a weight, and {other} has none", hint="give each a weight, or none"
        )
    if weighted and len(tables) == 1:
        raise UsageError(
            f"weight of [[{KEY}]] {weighted[0]} has no effect: it is a share beside other datasets, and there is none",
            hint="leave it out; loss_weight says how much its loss counts",
        )
    if tables and all(table.regularization for table in tables):
        raise UsageError(f"every [[{KEY}]] is for regularization", hint="add the dataset that is to be learned")
