"""Read WebDataset shards: tar files in which the files of one stem, `0001.jpg`, `0001.txt`, `0001.json`, are a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dsctl_core.data.caption_files import JSON_KEYS, JSON_SUFFIX, TEXT_SUFFIXES
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
        for stem, members in _samples(index["files"]):
            prefix = f"{shard}/" if shard else ""
            row = _row(path, prefix, stem, members, index["texts"], keys, left)
            if keys[0] in row:
                made.add({**dict.fromkeys((*keys, PROMPT)), **row})
                locations.append(f"{prefix}{stem}")
            else:
                left.update(Path(f"_.{member}").suffix for member in members)
    found = made.rows()
    if not locations:
        raise DataError(
            f"{base_path} has {counted(len(names), 'tar file')}, and no sample in them has a file for the "
            f"column {keys[0]!r}",
            hint=f"name the files of a sample STEM.jpg and STEM.txt, or STEM.{keys[0]}.jpg",
            kind="table",
        )
    layout = f"set of {counted(len(names), 'shard')} with {counted(len(locations), 'sample')}"
    unused = LeftOut(tuple(sorted(left.items(), key=lambda item: (-item[1], item[0]))))
    return Metadata(base_path, tuple(found.columns), found, None, layout, locations, left_out=unused)


def _samples(names: Sequence[str] | dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield (stem, what follows it in the names of its files): the stem ends at the first point of the last part."""
    found: dict[str, list[str]] = {}
    for name in names:
        folder, slash, last = name.rpartition("/")
        stem, point, suffix = last.partition(".")
        if point and stem and not stem.startswith("."):
            found.setdefault(f"{folder}{slash}{stem}", []).append(suffix)
    yield from found.items()


def _row(
    path: Path,
    prefix: str,
    stem: str,
    members: Sequence[str],
    texts: dict[str, str],
    keys: Sequence[str],
    left: Counter[str],
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    about: dict[str, Any] = {}
    for member in members:
        column, _, rest = member.rpartition(".")
        suffix, name = f".{rest.lower()}", f"{stem}.{member}"
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
            row[PROMPT] = texts[name].strip() if name in texts else _not_text(path, name)
        elif suffix == JSON_SUFFIX and not column:
            about = _object(path, name, texts)
        else:
            left[suffix] += 1
    caption = next((about[key] for key in (PROMPT, *JSON_KEYS) if key in about), None)
    others = {key: value for key, value in about.items() if key not in (*keys, *JSON_KEYS, PROMPT)}
    return {**others, **({PROMPT: caption} if caption is not None else {}), **row}


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


def _not_text(path: Path, name: str) -> BadCell:
    return BadCell(DataError(f"{path}/{name} is not UTF-8, or too long", hint="save it as UTF-8", kind="caption"))
