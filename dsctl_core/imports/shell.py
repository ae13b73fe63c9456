"""Read the commands of a shell script without running anything: words, quotes, continuations and variables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dsctl_core.errors import DsctlError

ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=", re.ASCII)
VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::?-([^{}$]*))?\})", re.ASCII)
KEYWORDS = {"if", "then", "else", "elif", "fi", "for", "while", "until", "do", "done", "case", "esac", "function"}
PLAIN = "write the command alone, with its values, into a file"


@dataclass
class Command:
    """One command: its words, and the environment variables that are set for it."""

    words: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    unset: list[str] = field(default_factory=list)  # variables that the script does not set


@dataclass
class Script:
    """The commands of a script and the variables that it exports."""

    commands: list[Command]
    exported: dict[str, str]


def read_script(text: str, file: Path) -> Script:
    """Return the commands in `text`; a DsctlError for what only a shell can do: loops, branches, substitutions."""
    variables: dict[str, str] = {}
    exported: dict[str, str] = {}
    commands = []
    for command in _commands(text, file, variables):
        while command.words and command.words[0] in ("export", "env") and len(command.words) > 1:
            exporting = command.words.pop(0) == "export"
            while command.words and ASSIGNMENT.match(command.words[0]):
                name, _, value = command.words.pop(0).partition("=")
                (exported if exporting else command.environment)[name] = value
                variables |= {name: value} if exporting else {}
            if exporting:
                command.words.clear()
        if command.words and command.words[0] in KEYWORDS:
            raise DsctlError(f"{file} has the word `{command.words[0]}`, for which it would have to be run", hint=PLAIN)
        if command.words:
            commands.append(command)
        else:
            variables |= command.environment  # an assignment without a command is one of a variable
    return Script(commands, exported)


def _commands(text: str, file: Path, variables: dict[str, str]) -> Iterator[Command]:
    command = Command()
    for word in _words(text.replace("\r\n", "\n"), file, variables, command):
        if word is not None:
            if not command.words and ASSIGNMENT.match(word):
                name, _, value = word.partition("=")
                command.environment[name] = value
            else:
                command.words.append(word)
        elif command.words or command.environment:
            yield Command(list(command.words), dict(command.environment), list(command.unset))
            command.words.clear()
            command.environment.clear()
            command.unset.clear()


def _words(text: str, file: Path, variables: dict[str, str], command: Command) -> Iterator[str | None]:
    """Yield the words of a script, and None at the end of each command; variables have the values of that moment."""
    place, word, begun = 0, "", False
    while place < len(text):
        letter = text[place]
        if letter == "\\":
            if text[place + 1 : place + 2] != "\n":
                word, begun = word + text[place + 1 : place + 2], True
            place += 2
        elif letter in "'\"":
            inside, place = _quoted(text, place, file, variables, command)
            word, begun = word + inside, True
        elif letter == "$":
            inside, place = _expanded(text, place, file, variables, command)
            first, *more = inside.split(" ") if not ASSIGNMENT.match(word) else [inside]
            word, begun = word + first, begun or bool(first)
            for part in more:
                if begun:
                    yield word
                word, begun = part, bool(part)
        elif letter in " \t\n;&|" or (letter == "#" and not begun):
            if begun:
                yield word
            word, begun = "", False
            if letter == "#":
                place = text.find("\n", place) if "\n" in text[place:] else len(text)
                continue
            if letter not in " \t":
                yield None
            place += 1
        elif letter in "`()":
            raise DsctlError(f"{file} has `{letter}`, for which it would have to be run", hint=PLAIN)
        else:
            word, begun, place = word + letter, True, place + 1
    if begun:
        yield word
    yield None


def _quoted(text: str, place: int, file: Path, variables: dict[str, str], command: Command) -> tuple[str, int]:
    """Return what stands between the quotes at `place`, and the place behind them."""
    quote, inside = text[place], ""
    place += 1
    while place < len(text) and text[place] != quote:
        if quote == '"' and text[place] == "\\" and text[place + 1 : place + 2] in ('"', "\\", "$", "`", "\n"):
            inside += text[place + 1].replace("\n", "")
            place += 2
        elif quote == '"' and text[place] == "$":
            found, place = _expanded(text, place, file, variables, command)
            inside += found
        else:
            inside, place = inside + text[place], place + 1
    if place >= len(text):
        raise DsctlError(f"{file} has a quote that is not closed: {quote}", hint="close it")
    return inside, place + 1


def _expanded(text: str, place: int, file: Path, variables: dict[str, str], command: Command) -> tuple[str, int]:
    """Return the value of the variable at `place`, and the place behind it."""
    found = VARIABLE.match(text, place)
    if found is None:
        if text[place + 1 : place + 2] in ("(", "{", "@", "*", "#"):
            shown = text[place : place + 12].splitlines()[0]
            raise DsctlError(f"{file} has `{shown}`, for which it would have to be run", hint=PLAIN)
        return "$", place + 1
    name = found[1] or found[2]
    if name not in variables and found[3] is None:
        command.unset.append(name)
        return found[0], found.end()
    return variables.get(name, found[3] or ""), found.end()
