"""Turns a pydantic model of options into flags: `takes(Options)`, and merges them with `--config run.toml`."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin

import typer

from dsctl import out
from dsctl_core.errors import UsageError, near_miss
from dsctl_core.options.base import Options
from dsctl_core.options.config_file import read_toml
from dsctl_core.options.messages import Positional, bare_type, choices, explain_value, spelled

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

AnyOptions = TypeVar("AnyOptions", bound=Options)
METAVARS = {int: "INT", float: "FLOAT", Path: "PATH", str: "TEXT", tuple: "NAMES"}


def takes(
    options: type[AnyOptions], *, config: bool = False
) -> Callable[[Callable[[AnyOptions], None]], Callable[..., None]]:
    """Make a function of `options` into a command: each field becomes a flag; with `config`, also a key of run.toml.

    Values are checked by the model alone: to the parser a flag is text, true or false, or a list of texts, and None
    when it was not given.
    """

    def decorate(function: Callable[[AnyOptions], None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(**values: Any) -> None:
            common = {name: values.pop(name) for name in ("json", "quiet", "verbose")}
            out.configure(**common)
            file = values.pop("config", None)
            flags = {name: _text(fields[name], value) for name, value in values.items() if value is not None}
            function(options.model_validate(merged(options, flags, Path(file) if file is not None else None)))

        fields = options.flat_fields()
        parameters = [_parameter(name, field, options.panel_of(name)) for name, field in fields.items()]
        parameters += _common_parameters(config)
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def _parameter(name: str, field: FieldInfo, panel: str) -> inspect.Parameter:
    """Return the parameter that typer makes a flag (or a positional argument) of."""
    kind = bare_type(field.annotation)
    settings: dict[str, Any] = {"help": _help(field), "show_default": False}
    if any(isinstance(mark, Positional) for mark in field.metadata):
        several = get_origin(kind) is tuple
        info = typer.Argument(None, metavar=name.upper() + ("..." if several else ""), **settings)
        words_of: Any = list[str] if several else str
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=words_of | None)
    flag, words = spelled(name), choices(field)
    annotation: Any = str
    settings["rich_help_panel"] = panel
    if kind is bool:
        flag, annotation = f"{flag}/--no-{flag[2:]}", bool
    elif words:
        settings["metavar"] = "|".join(words)
        settings["autocompletion"] = lambda incomplete: [word for word in words if word.startswith(incomplete)]
    else:
        settings["metavar"] = METAVARS.get(get_origin(kind) or kind) or kind.form
    if get_origin(kind) is tuple:
        annotation = list[str]
    if _is_list(field):
        each = bare_type(get_args(kind)[0])
        settings["metavar"] = getattr(each, "form", None) or METAVARS[each]
    info = typer.Option(None, flag, **settings)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=annotation | None)


def _is_list(field: FieldInfo) -> bool:
    """Return whether a field is given by repeating its flag, rather than as names separated by commas."""
    kind = bare_type(field.annotation)
    return get_origin(kind) is tuple and bare_type(get_args(kind)[0]) is not str


def _text(field: FieldInfo, value: Any) -> Any:
    """Return what a flag was given as the model reads it: names of a repeated flag are separated by commas too."""
    names = get_origin(bare_type(field.annotation)) is tuple and not _is_list(field)
    positional = any(isinstance(mark, Positional) for mark in field.metadata)
    return ",".join(value) if names and not positional else value


def _help(field: FieldInfo) -> str:
    """Return the description of a field, with its default if it has one worth telling."""
    if field.is_required():
        return f"{field.description} [required]"
    default = field.default
    if default is None or default is False or default in ((), ""):
        return f"{field.description}"
    return f"{field.description} [default: {','.join(default) if isinstance(default, tuple) else default}]"


def _common_parameters(config: bool) -> list[inspect.Parameter]:
    flags = {
        "json": "Print the result as one JSON object on stdout, and everything else on stderr.",
        "quiet": "Show the result and nothing else.",
        "verbose": "Show also what the libraries underneath have to say.",
    }
    infos: dict[str, tuple[Any, Any]] = {
        name: (bool, typer.Option(False, f"--{name}", help=text)) for name, text in flags.items()
    }
    if config:
        text = "Read options from a TOML file, a key for each; a flag beats it."
        infos = {"config": (str | None, typer.Option(None, "--config", metavar="PATH", help=text)), **infos}
    kind = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(name, kind, default=info, annotation=a) for name, (a, info) in infos.items()]


def merged(options: type[Options], flags: Mapping[str, Any], file: Path | None) -> dict[str, Any]:
    """Return the values of `flags` over those of the TOML file.

    A flag beats its own key, and also the key of an option that excludes it: `--max-steps` beats `num_epochs`.
    """
    if file is None:
        return dict(flags)
    values = read_config(options, file)
    for pair in options.alternatives():
        for winner, loser in (pair, pair[::-1]):
            if winner in flags and loser not in flags:
                values.pop(loser, None)
    return {**values, **flags}


def read_config(options: type[Options], file: Path) -> dict[str, Any]:
    """Read a TOML file whose keys are fields of `options`, each of the right type."""
    fields, values = options.flat_fields(), {}
    for key, value in read_toml(file, "--config").items():
        if not isinstance(value, str | int | float | list):
            what = "a table" if isinstance(value, dict) else "a date"
            raise UsageError(
                f"{key} in {file} is {what}, which no option takes", hint="write key = value, without [...]"
            )
        if key not in fields:
            guess = near_miss(key, list(fields))
            hint = f"did you mean {guess!r}?" if guess else "its keys are the flags' names, with underscores"
            raise UsageError(f"unknown key {key!r} in {file}", hint=hint)
        values[key] = _checked(f"{key} in {file}", fields[key], value)
    return values


def _checked(label: str, field: FieldInfo, value: Any) -> Any:
    """Return the value of one key, of exactly the field's type: "16" is no number, 1 is not true."""
    from pydantic import TypeAdapter, ValidationError

    try:
        # JSON, because there a path may be text and a tuple a list, also strictly.
        kind: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        return TypeAdapter(kind, config={"allow_inf_nan": False}).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise explain_value(label, field, {**error.errors()[0], "input": value}) from None
