"""Read the data of an edit model from two folders: the pictures to make, and the references they are made from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from dsctl_core.data.caption_files import CaptionFiles
from dsctl_core.data.columns import Row, Rows
from dsctl_core.data.folder import Files
from dsctl_core.data.problems import DataError
from dsctl_core.data.rows import BadCell, Metadata
from dsctl_core.readable import counted

# The folder of the pictures to make, and that of their references.
PAIRS = (("target", "control"), ("images", "control"), ("target", "source"), ("edited", "original"))


def find_pair(base_path: Path, files: Files) -> tuple[str, str] | None:
    """Return the two folders of `PAIRS` that a dataset has; None for none. Raises `DataError` for several."""
    present = {path.relative_to(base_path).parts[0] for path in files.media}
    found = [pair for pair in PAIRS if present.issuperset(pair)]
    if len(found) > 1:
        listed = " or ".join(f"{target}/ with {reference}/" for target, reference in found)
        raise DataError(
            f"{base_path} can be read as {listed}", hint="move the folders that are not to be used", kind="table"
        )
    return found[0] if found else None


def read_pair(base_path: Path, pair: tuple[str, str], keys: Sequence[str], files: Files) -> Metadata:
    """Return a row for each picture that is in one of the two folders, matched by path without the suffix.

    The captions are beside the pictures to make. A picture without its partner, or with several, gives a row with a
    `BadCell`.
    """
    target_key, reference_key = keys
    captions = CaptionFiles(files.others)
    targets, references = (_by_stem(base_path / folder, files.media) for folder in pair)
    rows: list[Row] = []
    names = []
    for stem in sorted(targets.keys() | references.keys()):
        own, partners = targets.get(stem, []), references.get(stem, [])
        for path in own[:1] or partners[:1]:
            names.append(path.relative_to(base_path).as_posix())
        rows.append(
            {
                target_key: _cell(base_path, own, partners, pair[0]),
                reference_key: _cell(base_path, partners, own, pair[1]),
                # Where the picture to make is missing, only that is a problem, not its caption too.
                "prompt": captions.caption(own[0]) if own else stem,
            }
        )
    unused = [path for path in files.media if path.relative_to(base_path).parts[0] not in pair]
    layout = f"folder of {counted(len(rows), 'pair')}: {pair[0]}/ as {target_key} and {pair[1]}/ as {reference_key}"
    left_out = files.left_out(base_path, captions, unused)
    return Metadata(base_path, (*keys, "prompt"), Rows.of(rows), None, layout, tuple(names), None, left_out)


def refuse_unread_pair(base_path: Path, key: str, files: Files) -> None:
    """Raise `DataError` for the two folders of a pair of which only `key` is read, and one has no captions."""
    pair = find_pair(base_path, files)
    if pair is None:
        return
    captions = CaptionFiles(files.others)
    references = [path for path in files.media if path.relative_to(base_path).parts[0] == pair[1]]
    if not any(any(captions.of(path)) for path in references):
        raise DataError(
            f"{base_path} has {pair[0]}/ and {pair[1]}/ with pairs of pictures, but only the column {key!r} is read",
            hint=f"read both with --data-file-keys {key},edit_image (and train with --extra-inputs edit_image), "
            f"or use {base_path / pair[0]}",
            kind="column",
        )


def _by_stem(folder: Path, media: Iterable[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in media:
        if folder in path.parents:
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return found


def _cell(base_path: Path, paths: Sequence[Path], partners: Sequence[Path], folder: str) -> str | BadCell:
    names = [path.relative_to(base_path).as_posix() for path in paths]
    if len(names) == 1:
        return names[0]
    if names:
        problem, hint = f"{folder}/ has {' and '.join(names)} of one name", "remove one of the two"
        return BadCell(DataError(problem, hint=hint, kind="partner"))
    partner = partners[0].relative_to(base_path).as_posix()
    problem = f"{folder}/ has no picture of the name of {partner}"
    return BadCell(DataError(problem, hint=f"add it to {base_path / folder}, or remove {partner}", kind="partner"))
