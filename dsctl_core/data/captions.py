"""Make the prompt of a sample from the captions in its row: prefix, suffix, random choice and dropout."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

from dsctl_core.data.problems import DataError
from dsctl_core.data.rows import text_cell
from dsctl_core.errors import UsageError
from dsctl_core.random import derive_seed

# The line ends of Windows, of old Macs, and of Unicode: a tokenizer would read each as other tokens than "\n".
LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Captions:
    """The settings that turn a caption into a prompt.

    Every line end of a caption becomes "\\n", and byte-order marks around it are dropped.

    `prefix` and `suffix` (a trigger word, for example) are joined to the caption with a space, unless they have one
    or begin with punctuation. With probability `dropout`, in [0, 1], the prompt of a sample is empty: classifier-free
    guidance needs a model that was trained without prompts too.
    """

    prefix: str = ""
    suffix: str = ""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout <= 1:
            raise UsageError(
                f"a caption dropout of {self.dropout} is not a probability", hint="use a value from 0 to 1"
            )

    def texts(self, cell: Any) -> tuple[str, ...]:
        """Return every prompt that a cell can become, without dropout: one, or one per entry of a list.

        Raises `DataError` for an empty list and for an entry that is not text.
        """
        if isinstance(cell, list | tuple):
            if not cell:
                raise DataError(
                    "the list of captions is empty", hint="add a caption, or remove the row", kind="caption"
                )
            return tuple(self._prompt(entry) for entry in cell)
        return (self._prompt(cell),)

    def choose(self, cell: Any, seed: int) -> str:
        """Choose the prompt of a sample. It depends on `cell` and `seed` alone, so all processes agree."""
        texts = self.texts(cell)
        generator = random.Random(derive_seed(seed, "caption"))
        if generator.random() < self.dropout:
            return ""
        return generator.choice(texts)

    def _prompt(self, caption: Any) -> str:
        text = LINE_ENDS.sub("\n", text_cell(caption)).strip(BYTE_ORDER_MARK)
        return _join(_join(self.prefix, text), self.suffix)


def _join(first: str, second: str) -> str:
    if not first or not second or first[-1].isspace() or second[0].isspace() or second[0] in ",.;:":
        return first + second
    return f"{first} {second}"
