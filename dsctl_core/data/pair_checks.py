"""Compare the reference images of a row with its target: equal images, another aspect ratio, swapped columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsctl_core.data.duplicates import MAX_ASPECT_RATIO_DISTANCE
from dsctl_core.data.inspection import FileFacts

REFERENCES = "edit_image"  # the column of reference images, and the argument of a pipeline
COMPRESSION = 3  # of 255; by so much JPEG at quality 75 changes a mean of an eighth by an eighth of an image


@dataclass(frozen=True)
class PairFault:
    """What is unusual about the pair of columns of row `number` (from 0; None: of all rows)."""

    kind: str
    message: str
    hint: str
    number: int | None = None
    file: Path | None = None


def odd_references(
    target: str, files_by_row: Sequence[Mapping[str, Sequence[Path]]], files: Mapping[Path, FileFacts]
) -> Iterator[PairFault]:
    """Yield the rows whose references equal the image in the column `target`, or have another aspect ratio."""
    for number, cells in enumerate(files_by_row):
        targets = [path for path in cells.get(target, ()) if path in files and not files[path].is_video]
        references = [path for path in cells.get(REFERENCES, ()) if path in files and not files[path].is_video]
        if target == REFERENCES or not targets or not references:
            continue
        made = files[targets[0]]
        for path in references:
            if are_equal(files[path], made):
                yield PairFault(
                    "same as target",
                    f"row {number + 1}: the {REFERENCES} {path} is the {target} itself: it teaches to change nothing",
                    f"give the picture before the edit as {REFERENCES}, or remove the row",
                    number,
                    path,
                )
        if not any(_ratios_agree(files[path].size, made.size) for path in references):
            (width, height), (across, down) = files[references[0]].size, made.size
            yield PairFault(
                "aspect ratio",
                f"row {number + 1}: the {REFERENCES} {references[0]} is {width}x{height}, but the {target} is "
                f"{across}x{down}: what is to stay would have to move",
                "crop both to the same part, unless the two are not of one scene",
                number,
                references[0],
            )


def swapped_columns(
    columns: Sequence[str], files_by_row: Sequence[Mapping[str, Sequence[Path]]], files: Mapping[Path, FileFacts]
) -> Iterator[PairFault]:
    """Yield each column in which every file is the target of another row: the two were probably swapped.

    The target is the first of `columns`.
    """
    target, *others = columns
    digests: dict[Any, set[int]] = {}
    for number, cells in enumerate(files_by_row):
        for path in cells.get(target, ()):
            if path in files:
                digests.setdefault(files[path].digest, set()).add(number)
    for key in others:
        entries = [(number, path) for number, cells in enumerate(files_by_row) for path in cells.get(key, ())]
        known = [(number, files[path].digest) for number, path in entries if path in files]
        if len(known) < 2 or len(known) < len(entries):
            continue
        if all(digests.get(digest, set()) - {number} for number, digest in known):
            message = f"every {key} is the {target} of another row ({len(known)} files): are the two columns swapped?"
            hint = f"if they are, exchange them with --column {target}={key},{key}={target}"
            yield PairFault("swapped columns", message, hint)


def are_equal(one: FileFacts, other: FileFacts) -> bool:
    """Return whether two images have the same bytes, or the same colours at 8x8 pixels up to compression.

    Even a small edit changes one of the 8x8 colours by more.
    """
    largest = max(abs(a - b) for a, b in zip(one.colors, other.colors, strict=True))
    return one.digest == other.digest or (largest <= COMPRESSION and _ratios_agree(one.size, other.size))


def _ratios_agree(one: tuple[int, int], other: tuple[int, int]) -> bool:
    ratios = [width / height for width, height in (one, other)]
    return abs(ratios[0] - ratios[1]) <= MAX_ASPECT_RATIO_DISTANCE * max(ratios)
