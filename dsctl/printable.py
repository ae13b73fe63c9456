"""Escape what came from outside before a terminal shows it: names of files, prompts, answers of hubs, log records."""

from __future__ import annotations

import unicodedata

# Invisible characters that scripts and emoji are written with; none of them moves or hides other text.
JOINERS = frozenset("\u200c\u200d")
# Cc: control characters, also ESC, with which commands to a terminal begin. Cf: format characters, also those that
# turn the direction of text. Cs: half of a surrogate pair, as names that are not UTF-8 have. Zl, Zp: line breaks.
ESCAPED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    """Return `text` on one line, with every character that is not to be seen written as in Python: `\\x1b`, `\\u202e`.

    Text that was escaped already stays as it is.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in ESCAPED or character in JOINERS:
        return character
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def encodable(text: str, encoding: str | None) -> str:
    """Return `text` with what `encoding` has no bytes for escaped: not every terminal takes UTF-8."""
    name = encoding or "utf-8"
    return text.encode(name, "backslashreplace").decode(name)
