"""Options from a file, `--config`: a TOML file with a key for each, or the run.json of an earlier run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import isclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel

from dsctl_core.errors import UsageError, near_miss
from dsctl_core.options.base import Options
from dsctl_core.options.messages import (
    EMPTY_PATH,
    bare_type,
    explain_value,
    is_empty_path,
    other_spellings,
    requirement,
    spelled,
)

AnyOptions = TypeVar("AnyOptions", bound=Options)
ONLY_AS_FLAGS = {"trust_template"}  # what a file that came with a download must not say


@dataclass(frozen=True)
class Config:
    """The values of options, and the names of those that were given; the others were resolved in an earlier run."""

    values: dict[str, Any]
    given: frozenset[str]


def build_options(
    options: type[AnyOptions], flags: Mapping[str, Any], file: Path | None, command: str = "train"
) -> AnyOptions:
    """Return the options of `command` with the values of `flags` over those of the file."""
    if file is None:
        return options.model_validate(flags)
    config = merged(options, flags, read_config(options, file, command, flags))
    return options.resolved(config.values, config.given)


def merged(options: type[Options], flags: Mapping[str, Any], config: Config) -> Config:
    """Return the values of `flags` over those of the file.

    A flag beats its own key, and also the keys of options that it excludes: `--max-steps` beats `num_epochs`, and
    `--from-cache` all that is about reading the dataset.
    """
    values = dict(config.values)
    for pair in options.alternatives():
        for winner, loser in (pair, pair[::-1]):
            if winner in flags and loser not in flags:
                values.pop(loser, None)
    for entry in options.idle_entries():
        for name in entry.names if entry.by in flags else ():
            if name not in flags:
                values.pop(name, None)
    return Config({**values, **flags}, (config.given & values.keys()) | flags.keys())


def read_config(
    options: type[Options], file: Path, command: str = "train", flags: Mapping[str, Any] | None = None
) -> Config:
    """Read a file whose keys are fields of `options`, each of the right type.

    What an earlier run resolved from options that `flags` have now is left out.
    """
    from dsctl_core.options.config_file import read_toml
    from dsctl_core.options.run_file import SUFFIX, read_run_file

    if file.suffix.lower() == SUFFIX:
        run = read_run_file(file, command).without_resolved(flags or {})
        values = {name: _value(options, name, value, file) for name, value in run.values.items()}
        return Config(values, run.given)
    values = {}
    for key, value in read_toml(file, "--config", tables=of_tables(options)).items():
        if not isinstance(value, str | int | float | list):
            what = "a table" if isinstance(value, dict) else "a date"
            raise UsageError(
                f"{key} in {file} is {what}, which no option takes",
                hint="write [[dataset]]" if key in of_tables(options) else "write key = value, without [...]",
            )
        name = _named(options, key)
        if name in ONLY_AS_FLAGS and value is True:
            raise UsageError(
                f"{key} = true in {file} has no say: a file may come with what it asks to be trusted",
                hint=f"read the code, then give {spelled(key)} on the command line",
            )
        if name in values:
            raise UsageError(f"{key} in {file} is {name}, which is there too", hint="write one of them")
        values[name] = _value(options, name, value, file, key)
    return Config(values, frozenset(values))


def of_tables(options: type[Options]) -> list[str]:
    """Return the options whose values are tables, such as [[dataset]]."""
    kinds = {name: bare_type(field.annotation) for name, field in options.flat_fields().items()}
    inner = {name: bare_type(get_args(kind)[0]) for name, kind in kinds.items() if get_origin(kind) is tuple}
    return [name for name, kind in inner.items() if isclass(kind) and issubclass(kind, BaseModel)]


def _named(options: type[Options], key: str) -> str:
    """Return the option that a key names, by its own name or by the other spelling of its flag."""
    flag = spelled(key)
    names = [name for name, field in options.flat_fields().items() if flag in other_spellings(field)]
    return names[0] if names and "-" not in key else key


def _value(options: type[Options], name: str, value: Any, file: Path, key: str | None = None) -> Any:
    """Return the value of one key, of exactly the field's type: "16" is no number, 1 is not true."""
    from pydantic import TypeAdapter, ValidationError

    fields = options.flat_fields()
    if name not in fields:
        guess = near_miss(name, list(fields))
        hint = f"did you mean {guess!r}?" if guess else "its keys are the flags' names, with underscores"
        raise UsageError(f"unknown key {name!r} in {file}", hint=hint)
    field, label = fields[name], f"{key or name} in {file}"
    if is_empty_path(field, value):
        raise UsageError(f"{label} is {value!r}: {EMPTY_PATH}", hint=f"{label} takes {requirement(field)}")
    try:
        # JSON, because there a path may be text and a tuple a list, also strictly.
        kind: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        return TypeAdapter(kind, config={"allow_inf_nan": False}).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise explain_value(label, field, {**error.errors()[0], "input": value}) from None
