"""Read WebDataset shards: tar files in which the files of one stem, `0001.jpg`, `0001.txt`, `0001.json`, are a row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dsctl_core.data.caption_files import JSON_KEYS, JSON_SUFFIX, TEXT_SUFFIXES, several_keys, two_captions
from dsctl_core.data.columns import RowsBuilder
from dsctl_core.data.kinds import media_suffixes
from dsctl_core.data.problems import DataError, explained_os_errors
from dsctl_core.data.rows import BadCell, LeftOut, Metadata
from dsctl_core.files.json import decode_json
from dsctl_core.readable import counted
from dsctl_core.remote import anywhere
from dsctl_core.remote.archives import TAR, shards
from dsctl_core.remote.tar import index_of

PROMPT = "prompt"


def named_shards(base_path: Path) -> list[str]:
    """Return the names of the shards that a path names itself: `shard-{000..009}.tar`, or one tar (""); else none."""
    return shards(str(base_path)) or ([""] if base_path.suffix == TAR and not base_path.is_dir() else [])


def read_shards(base_path: Path, names: Sequence[str], keys: Sequence[str]) -> Metadata:
    """Return a row for each sample of the shards `names`, in their order, that has a file for the first of `keys`.

    A picture or clip `STEM.jpg` is in the column `keys[0]`, and `STEM.edit_image.jpg` in `edit_image`; a text
    `STEM.txt` is the prompt, or else what `STEM.json` has as caption; its other keys are columns.
    """
    made, locations, left = RowsBuilder(), list[str](), Counter[str]()
    for shard in names:
        path = base_path / shard if shard else base_path
        path = path.parent.parent / shard if shards(str(path.parent)) else path
        with explained_os_errors(path):
            index = index_of(anywhere.tar_at(path))
        if not index["files"]:
            raise DataError(f"{path} is a tar without files", hint="write it again, or leave it out", kind="table")
        left.update(index["left"])
        for stem, members in _samples(index["files"], left):
            prefix = f"{shard}/" if shard else ""
            row, unused = _row(path, prefix, stem, members, index["texts"], keys)
            if keys[0] in row:
                made.add({**dict.fromkeys((*keys, PROMPT)), **row})
                locations.append(f"{prefix}{stem}")
            else:
                unused = members
            left.update(_suffix(member) for member in unused)
    found = made.rows()
    if not locations:
        raise DataError(
            f"{base_path} has {counted(len(names), 'tar file')}, and no sample in them has a file for the "
            f"column {keys[0]!r}",
            hint=f"name the files of a sample STEM.jpg and STEM.txt, or STEM.{keys[0]}.jpg",
            kind="table",
        )
    layout = f"WebDataset of {counted(len(names), 'shard')} with {counted(len(locations), 'sample')}"
    left_out = LeftOut(tuple(sorted(left.items(), key=lambda item: (-item[1], item[0]))))
    return Metadata(base_path, tuple(found.columns), found, None, layout, locations, left_out=left_out)


def _samples(names: Iterable[str], left: Counter[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield (stem, what follows it in the names of its files): the stem ends at the first point of the last part.

    Files without a stem are counted in `left`.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        folder, slash, last = name.rpartition("/")
        stem, point, suffix = last.partition(".")
        if point and stem:
            found.setdefault(f"{folder}{slash}{stem}", []).append(suffix)
        else:
            left["hidden" if point else "without a suffix"] += 1
    yield from found.items()


def _suffix(member: str) -> str:
    last = member.rpartition(".")[2].lower()
    return f".{last}" if last else "without a suffix"


def _row(
    path: Path, prefix: str, stem: str, members: Sequence[str], texts: dict[str, str], keys: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the cells of a sample, and those of its files that are in none."""
    row: dict[str, Any] = {}
    words: list[str] = []
    objects: list[str] = []
    unused: list[str] = []
    for member in members:
        column, suffix, name = member.rpartition(".")[0], _suffix(member), f"{stem}.{member}"
        if suffix in media_suffixes() and (not column or column in keys):
            column = column or keys[0]
            if column in row:
                raise DataError(
                    f"{path} has two files of the sample {stem} for the column {column!r}: "
                    f"{row[column].removeprefix(prefix)} and {name}",
                    hint="leave one of them out, or name the column in the file: STEM.COLUMN.jpg",
                    kind="table",
                )
            row[column] = f"{prefix}{name}"
        elif suffix in TEXT_SUFFIXES and not column:
            words.append(name)
        elif suffix == JSON_SUFFIX and not column:
            objects.append(name)
        else:
            unused.append(member)
    if len(objects) > 1:
        raise DataError(
            f"{path} has two files of the sample {stem} with its columns: {' and '.join(objects)}",
            hint="leave one of them out",
            kind="table",
        )
    about = _object(path, objects[0], texts) if objects else {}
    for key in keys:
        own = row.get(key, "").removeprefix(prefix)
        if key in about and about[key] not in (None, *((own, own.rpartition("/")[2]) if own else ())):
            raise DataError(
                f"{path}/{objects[0]} has the key {key!r}, which is a column of files, and the files of a sample of a "
                "tar are those of its name",
                hint=f"remove the key, or put its file into the tar as {stem}.{key}.png",
                kind="column",
            )
    others = {key: value for key, value in about.items() if key not in (*keys, *JSON_KEYS, PROMPT)}
    try:
        caption = _caption(path, stem, words, texts, dict.fromkeys(objects, about))
    except DataError as error:
        caption = BadCell(error)
    return {**others, **({PROMPT: caption} if caption is not None else {}), **row}, unused


def _caption(
    path: Path, stem: str, words: Sequence[str], texts: dict[str, str], objects: dict[str, dict[str, Any]]
) -> Any:
    """Return the caption of a sample by the rules of captions beside files, None if it has none.

    `words` are its files of text, and `objects` what is in its files of json.
    """
    found = [(name, about[key]) for name, about in objects.items() for key in JSON_KEYS if key in about]
    if len(words) > 1:
        raise two_captions(f"{path}/{stem}", words)
    if not words:
        if len({json.dumps(value) for _, value in found}) > 1:
            raise several_keys(f"{path}/{found[0][0]}", [key for key in JSON_KEYS if key in objects[found[0][0]]])
        return found[0][1] if found else None
    if words[0] not in texts:
        raise DataError(f"{path}/{words[0]} is not UTF-8, or too long", hint="save it as UTF-8", kind="caption")
    text = texts[words[0]].strip()
    if found and text not in [value.strip() for _, value in found if isinstance(value, str)]:
        raise two_captions(f"{path}/{stem}", [words[0], found[0][0]])
    return text


def _object(path: Path, name: str, texts: dict[str, str]) -> dict[str, Any]:
    try:
        found = decode_json(texts[name]) if name in texts else None
    except ValueError as error:
        raise DataError(
            f"{path}/{name} cannot be read as json: {error}", hint="correct the file", kind="table"
        ) from error
    if not isinstance(found, dict):
        raise DataError(f"{path}/{name} is no object of json in UTF-8", hint="correct the file", kind="table")
    return found
