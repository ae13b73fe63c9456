"""Find the prompts of a dataset that a model would cut, with its tokenizer alone."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from dsctl_core.data import DataError, UnifiedDataset
from dsctl_core.data.row_texts import TEXT_COLUMNS
from dsctl_core.families.resolve import ResolvedModel

SHOWN_ROWS = 5


@dataclass(frozen=True)
class CutPrompts:
    """The prompts that a model cuts, with their numbers of tokens; `limit` is how many the model takes.

    `unchecked` prompts are long, and their tokens could not be counted: the tokenizer is not on this machine.
    """

    model: str
    limit: int
    tokens: dict[str, int]
    unchecked: int = 0

    def problem(self, prompt: str) -> str:
        """Return what is wrong with a prompt in `tokens`."""
        return f"the prompt is {self.tokens[prompt]} tokens, and {self.model} takes {self.limit}: its end is cut"

    def note_of_unchecked(self) -> str | None:
        """Return a line about the prompts that were not counted; None if all of them were."""
        if not self.unchecked:
            return None
        return (
            f"{self.unchecked} long prompts may be cut: the tokenizer of {self.model}, which counts their tokens, "
            "is not on this machine (`dsctl download` gets it)"
        )


def find_cut_prompts(resolved: ResolvedModel, prompts: Sequence[str], *, download: bool = False) -> CutPrompts:
    """Return which of `prompts` are longer than the model takes.

    The tokenizer is loaded only if a prompt may be too long; with `download` it is fetched if it is not there.
    """
    limit, most = resolved.family.prompt_limit, most_tokens(resolved)
    if limit is None or most is None:
        return CutPrompts(resolved.label, 0, {})
    # What a model puts around a prompt is less than half of what it takes.
    long = [prompt for prompt in dict.fromkeys(prompts) if _most_tokens(prompt) > most // 2]
    if not long:
        return CutPrompts(resolved.label, most, {})
    reader = resolved.find_reader(limit.reader, download=download)
    if reader is None:
        return CutPrompts(resolved.label, most, {}, unchecked=len(long))
    counts = zip(long, limit.count(reader, long, resolved.known_index), strict=True)
    return CutPrompts(resolved.label, most, {each: count for each, count in counts if count > most})


def most_tokens(resolved: ResolvedModel) -> int | None:
    """Return how many tokens of a prompt a model takes; None where there is no limit."""
    limit = resolved.family.prompt_limit
    if limit is None:
        return None
    return limit.of_kind.get(resolved.parts.kind or "", limit.tokens) if limit.of_kind else limit.tokens


def _most_tokens(prompt: str) -> int:
    """Return at least the number of tokens of a prompt: one for each byte, in the longest Unicode form."""
    return len(prompt) if prompt.isascii() else len(unicodedata.normalize("NFKD", prompt).encode())


def cut_prompt_notes(dataset: UnifiedDataset, resolved: ResolvedModel, *, download: bool = False) -> Iterator[str]:
    """Yield a line for each row with a prompt that the model cuts, and one for all after the first few."""
    limit, longest = most_tokens(resolved), _most_characters(dataset)
    if limit is None or (longest is not None and longest <= limit // 2):
        return
    texts = {}
    for number in dataset.rows_in_use:
        # A prompt that cannot be read is a problem of its own, found where the row is checked.
        with suppress(DataError):
            texts[number] = dataset.prompts(number)
    found = find_cut_prompts(resolved, [text for own in texts.values() for text in own], download=download)
    rows = [(number, text) for number, own in texts.items() for text in own if text in found.tokens]
    for number, text in rows[:SHOWN_ROWS]:
        yield f"{dataset.location(number)}: {found.problem(text)}"
    if len(rows) > SHOWN_ROWS:
        yield f"the prompts of {len(rows) - SHOWN_ROWS} more rows are cut; `dsctl dataset validate --model` shows all"
    if (note := found.note_of_unchecked()) is not None:
        yield note


def _most_characters(dataset: UnifiedDataset) -> int | None:
    """Return at least the length of the longest prompt, if that is known without a look at each."""
    found = 0
    for part in dataset.parts:
        rows, words = part.metadata.rows, part.captions.prefix + part.captions.suffix
        for key in TEXT_COLUMNS:
            longest = rows.most_characters(key) if words.isascii() else None
            if longest is None:
                return None
            found = max(found, longest + len(words) + 2)
    return found
