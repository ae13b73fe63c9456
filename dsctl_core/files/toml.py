"""Write TOML: values, and comments that stay comments whatever is in them."""

from __future__ import annotations

import json
from typing import Any


def toml_value(value: Any) -> str:
    """Return a text, number, true or false, or a list of these as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, float):
        return repr(value)
    # The escapes of JSON are among those of TOML, which also escapes the character DEL.
    return (
        str(value) if isinstance(value, int) else json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    )


def toml_comment(text: str) -> str:
    """Return a comment of one line: line ends and control characters in `text` become spaces."""
    return f"# {' '.join(''.join(letter if letter.isprintable() else ' ' for letter in text).split())}"
