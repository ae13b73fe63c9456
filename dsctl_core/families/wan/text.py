"""Clean prompts as Wan does before it counts or encodes their tokens."""

from __future__ import annotations

import html
import re

import ftfy


def cleaned(text: str) -> str:
    """Return a prompt as the text encoder of Wan was trained on it: encoding errors, HTML and spaces repaired."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()
