"""Captions: what a sample's prompt becomes of what its row says."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from dsctl_core.data.problems import DataError
from dsctl_core.data.rows import text_cell
from dsctl_core.errors import UsageError
from dsctl_core.random import derive_seed


@dataclass(frozen=True)
class Captions:
    """How prompts are made: words around each, and how often a sample goes without.

    `prefix` and `suffix` (a trigger word) are joined to a caption with a space unless they bring their own. A sample
    has the empty prompt with probability `dropout`, which is how a model learns to do without one, as guidance needs.
    """

    prefix: str = ""
    suffix: str = ""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout <= 1:
            raise UsageError(f"a caption dropout of {self.dropout} is no probability", hint="give 0 to 1")

    def texts(self, cell: Any) -> tuple[str, ...]:
        """Return every prompt that a cell can become, without dropout: one, or one for each entry of a list."""
        if isinstance(cell, list | tuple):
            if not cell:
                raise DataError(
                    "the list of captions is empty", hint="write a caption there, or remove the row", kind="caption"
                )
            return tuple(self._dressed(text_cell(entry)) for entry in cell)
        return (self._dressed(text_cell(cell)),)

    def choose(self, cell: Any, seed: int) -> str:
        """Return the prompt of the sample with this seed: a pure function, so the same in every process."""
        texts = self.texts(cell)
        draw = random.Random(derive_seed(seed, "caption"))
        if draw.random() < self.dropout:
            return ""
        return draw.choice(texts)

    def _dressed(self, text: str) -> str:
        return _joined(_joined(self.prefix, text), self.suffix)


def _joined(first: str, second: str) -> str:
    if not first or not second or first[-1].isspace() or second[0].isspace() or second[0] in ",.;:":
        return first + second
    return f"{first} {second}"
