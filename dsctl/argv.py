"""Check a command line before it is parsed: rewrite `--lora_rank`, refuse unknown, repeated and incomplete flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsctl_core.errors import UsageError, near_miss


def checked_argv(words: Sequence[str], params: Sequence[Any], path: str, *, is_group: bool = False) -> list[str]:
    """Return the arguments `words` with dashes instead of underscores in flags; values are not changed.

    `params` are the parameters of the command and `path` is its name, such as "dsctl train". In a group, checking ends
    at the name of the command. Raises `UsageError` for an unknown flag, for one that is given twice unless it takes
    several values, for a flag without its value or with a value it does not take, and for too many arguments.
    """
    flags = {name: param for param in params for name in (*param.opts, *param.secondary_opts) if name[:1] == "-"}
    arguments = [param for param in params if param.param_type_name == "argument"]
    max_positional = len(words) if any(param.nargs == -1 for param in arguments) else len(arguments)
    checked: list[str] = []
    positional: list[str] = []
    before: dict[str | None, str] = {}  # the parameters that were given, with the flags that gave them
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        if word == "--":
            checked, positional, remaining = [*checked, word, *remaining], [*positional, *remaining], []
        elif word.startswith("--"):
            found = _flag_and_value(word, flags, remaining, path, is_group)
            _refuse_repeated(found[0].partition("=")[0], flags, before)
            checked += found
        else:
            checked, positional = [*checked, word], [*positional, word]
            if is_group:
                return [*checked, *remaining]
    if len(positional) > max_positional:
        hint = f"put a value with spaces in quotes; see `{path} --help`"
        raise UsageError(f"unexpected argument {positional[max_positional]!r}", hint=hint)
    return checked


def _flag_and_value(word: str, flags: Mapping[str, Any], remaining: list[str], path: str, is_group: bool) -> list[str]:
    """Return the flag in `word` with its declared name, and its value, which may be removed from `remaining`."""
    written, equals, value = word.partition("=")
    name = written.replace("_", "-")
    if name not in flags:
        raise _unknown_flag(written, list(flags), path, is_group)
    if flags[name].is_flag:
        if equals:
            raise UsageError(f"{name} takes no value, but it has the value {value!r}", hint=f"write {name} alone")
        return [name]
    if equals:
        return [f"{name}={value}"]
    if not remaining:
        raise UsageError(f"{name} has no value", hint=f"{name}: {flags[name].help}")
    following = remaining[0].partition("=")[0]
    if following.startswith("--") and following.replace("_", "-") in flags:
        problem = f"{name} has no value: the next argument is the flag {following}"
        raise UsageError(problem, hint=f"add a value; if the value is the text {following}, write {name}={following}")
    return [name, remaining.pop(0)]


def _refuse_repeated(flag: str, flags: Mapping[str, Any], before: dict[str | None, str]) -> None:
    """Raise a UsageError for a second flag of one parameter, unless that takes several values."""
    param = flags[flag]
    earlier = before.get(param.name)
    before[param.name] = flag
    if earlier is None or param.multiple:
        return
    if earlier == flag:
        raise UsageError(f"{flag} is given twice", hint="give it once")
    raise UsageError(f"{earlier} and {flag} are both given", hint="give one of them")


def _unknown_flag(flag: str, known: list[str], path: str, is_group: bool) -> UsageError:
    guess = near_miss(flag.replace("_", "-"), known)
    hint = f"did you mean {guess}?" if guess is not None else f"see `{path} --help`"
    order = "; write the flags of a command after its name" if is_group else ""
    return UsageError(f"unknown flag {flag}", hint=hint + order)


def unknown_command(name: str, known: list[str], path: str) -> UsageError:
    """Return the error for a command that does not exist."""
    guess = near_miss(name, known)
    hint = f"did you mean `{path} {guess}`?" if guess is not None else f"known: {', '.join(known)}"
    return UsageError(f"unknown command {name!r}", hint=hint)
