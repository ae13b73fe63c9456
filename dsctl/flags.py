"""Turns a pydantic model of options into flags: `takes(Options)`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

import typer

from dsctl import out
from dsctl.config import build_options
from dsctl_core.errors import UsageError
from dsctl_core.options.base import Options
from dsctl_core.options.messages import (
    bare_type,
    choices,
    default_text,
    is_positional,
    other_spellings,
    spelled,
)

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

AnyOptions = TypeVar("AnyOptions", bound=Options)
CONFIG = "Read options from a TOML file, a key for each, or from the run.json of an earlier run; a flag beats it."
MOST_USED = "Most used"  # the heading of the flags that --help shows first
AS_FLAG = "_as_flag"  # ends the name of the parameter that is the flag of a positional argument
METAVARS = {int: "INT", float: "FLOAT", Path: "PATH", str: "TEXT", tuple: "NAMES"}


def takes(
    options: type[AnyOptions], *, config: bool = False, example: str = "", most_used: Sequence[str] = ()
) -> Callable[[Callable[[AnyOptions], None]], Callable[..., None]]:
    """Make a function of `options` into a command: each field becomes a flag; with `config`, also a key of a file.

    --help opens with the command line `example` and with the options `most_used`, in their order.

    Values are checked by the model alone: to the parser a flag is text, true or false, or a list of texts, and None
    when it was not given.
    """

    def decorate(function: Callable[[AnyOptions], None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(**values: Any) -> None:
            common = {name: values.pop(name) for name in ("json", "quiet", "verbose")}
            if common["quiet"] and common["verbose"]:
                raise UsageError("--quiet and --verbose are both given", hint="give one of them")
            out.configure(**common)
            file = values.pop("config", None)
            if file == "":
                raise UsageError("--config is empty", hint="--config takes a path, of a TOML file or a run.json")
            given = _either_way({name: value for name, value in values.items() if value is not None})
            flags = {name: _text(fields[name], value) for name, value in given.items()}
            function(build_options(options, flags, None if file is None else Path(file), function.__name__))

        fields = options.flat_fields()
        order = [*most_used, *sorted(fields, key=lambda name: not is_positional(fields[name]))]
        parameters = [
            each
            for name in dict.fromkeys(order)
            for each in _parameters(name, fields[name], options, name in most_used)
        ]
        parameters += _common_parameters(config)
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        command.example = example  # type: ignore[attr-defined]
        return command

    return decorate


def _parameters(name: str, field: FieldInfo, options: type[Options], first: bool) -> Iterator[inspect.Parameter]:
    """Yield the parameters that typer makes a flag of, or a positional argument, or both of one option."""
    if not is_positional(field):
        yield _flag(name, field, MOST_USED if first else options.panel_of(name))
        return
    several = get_origin(bare_type(field.annotation)) is tuple
    metavar = name.upper() + ("..." if several else "")
    info = typer.Argument(None, metavar=metavar, help=_help(field), show_default=False)
    words_of: Any = list[str] if several else str
    yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=words_of | None)
    if other_spellings(field):
        text = f"The same as {metavar}."
        settings: dict[str, Any] = {"metavar": "TEXT", "help": text, "rich_help_panel": "Arguments"}
        option = typer.Option(None, *other_spellings(field), **settings, show_default=False)
        kind = inspect.Parameter.KEYWORD_ONLY
        yield inspect.Parameter(f"{name}{AS_FLAG}", kind, default=option, annotation=str | None)


def _either_way(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with those of positional arguments that were given as flags; two that differ are an error."""
    for name in [name for name in values if name.endswith(AS_FLAG)]:
        value, own = values.pop(name), name.removesuffix(AS_FLAG)
        if values.setdefault(own, value) != value:
            raise UsageError(
                f"{own.upper()} is {values[own]!r}, but {spelled(own)} is {value!r}", hint="give one of them"
            )
    return values


def _flag(name: str, field: FieldInfo, panel: str) -> inspect.Parameter:
    kind = bare_type(field.annotation)
    settings: dict[str, Any] = {"help": _help(field), "show_default": False, "rich_help_panel": panel}
    flag, words = spelled(name), choices(field)
    annotation: Any = str
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
    info = typer.Option(None, flag, *other_spellings(field), **settings)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=annotation | None)


def _is_list(field: FieldInfo) -> bool:
    """Return whether a field is given by repeating its flag, rather than as names separated by commas."""
    kind = bare_type(field.annotation)
    return get_origin(kind) is tuple and bare_type(get_args(kind)[0]) is not str


def _text(field: FieldInfo, value: Any) -> Any:
    """Return what a flag was given as the model reads it: names of a repeated flag are separated by commas too."""
    names = get_origin(bare_type(field.annotation)) is tuple and not _is_list(field)
    return ",".join(value) if names and not is_positional(field) else value


def _help(field: FieldInfo) -> str:
    """Return the description of a field, with its default if it has one worth telling."""
    if field.is_required():
        return f"{field.description} [required]"
    default = None if field.default is False else default_text(field)
    return f"{field.description}" if default is None else f"{field.description} [default: {default}]"


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
        text = CONFIG
        infos = {"config": (str | None, typer.Option(None, "--config", metavar="PATH", help=text)), **infos}
    kind = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(name, kind, default=info, annotation=a) for name, (a, info) in infos.items()]
