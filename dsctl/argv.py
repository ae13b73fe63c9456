"""The words of a command line before they are parsed: `--lora_rank` rewritten, unknown and incomplete flags refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsctl_core.errors import UsageError, near_miss


def checked_argv(words: Sequence[str], params: Sequence[Any], path: str, *, is_group: bool = False) -> list[str]:
    """Return `words` with dashes for the underscores of flags, never touching a value.

    `params` are the command's parameters and `path` is its name, as in "dsctl train". A group's words end at the
    name of a command. Raises UsageError for a flag that is unknown, lacks its value or has one too many, and for a
    word too many.
    """
    flags = {name: param for param in params for name in (*param.opts, *param.secondary_opts) if name[:1] == "-"}
    arguments = [param for param in params if param.param_type_name == "argument"]
    places = len(words) if any(param.nargs == -1 for param in arguments) else len(arguments)
    checked: list[str] = []
    alone: list[str] = []  # the words that are neither a flag nor a flag's value
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            checked, alone, left = [*checked, word, *left], [*alone, *left], []
        elif word.startswith("--"):
            checked += _flag_and_value(word, flags, left, path, is_group)
        else:
            checked, alone = [*checked, word], [*alone, word]
            if is_group:
                return [*checked, *left]
    if len(alone) > places:
        hint = f"put a value that has spaces in quotes; see `{path} --help`"
        raise UsageError(f"{alone[places]!r} is one word too many", hint=hint)
    return checked


def _flag_and_value(word: str, flags: Mapping[str, Any], left: list[str], path: str, is_group: bool) -> list[str]:
    """Return the flag in `word` as it is declared, with its value, which may have to be taken off `left`."""
    written, equals, value = word.partition("=")
    name = written.replace("_", "-")
    if name not in flags:
        raise _unknown_flag(written, list(flags), path, is_group)
    if flags[name].is_flag:
        if equals:
            raise UsageError(f"{name} takes no value, but {value!r} is given", hint=f"write {name} alone")
        return [name]
    if equals:
        return [f"{name}={value}"]
    if not left:
        raise UsageError(f"{name} is given without a value", hint=f"{name}: {flags[name].help}")
    following = left[0].partition("=")[0]
    if following.startswith("--") and following.replace("_", "-") in flags:
        problem = f"{name} is given without a value: the next word is the flag {following}"
        raise UsageError(problem, hint=f"give it one; if it is to be the text {following}, write {name}={following}")
    return [name, left.pop(0)]


def _unknown_flag(flag: str, known: list[str], path: str, is_group: bool) -> UsageError:
    guess = near_miss(flag.replace("_", "-"), known)
    hint = f"did you mean {guess}?" if guess is not None else f"see `{path} --help`"
    where = "; the flags of a command stand after its name" if is_group else ""
    return UsageError(f"unknown flag {flag}", hint=hint + where)


def unknown_command(name: str, known: list[str], path: str) -> UsageError:
    """Build the error for a command that does not exist."""
    guess = near_miss(name, known)
    hint = f"did you mean `{path} {guess}`?" if guess is not None else f"known: {', '.join(known)}"
    return UsageError(f"unknown command {name!r}", hint=hint)
