"""Finding and reading what describes a dataset: a table, a Hugging Face ImageFolder, or captions beside the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dsctl_core.data.folder import MEDIA_SUFFIXES, read_folder
from dsctl_core.data.parquet import read_parquet
from dsctl_core.data.problems import DataError, explained_os_errors
from dsctl_core.data.rows import Metadata, Row, text_cell
from dsctl_core.data.tables import read_csv, read_json, read_jsonl
from dsctl_core.errors import near_miss

__all__ = ["METADATA_NAMES", "Metadata", "Row", "find_metadata", "read_dataset", "read_metadata", "text_cell"]

READERS: dict[str, Callable[[Path], Metadata]] = {
    ".csv": read_csv,
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}
METADATA_NAMES = tuple(f"metadata{suffix}" for suffix in READERS)
IMAGE_FOLDER_FILE = "file_name"  # the column of a Hugging Face ImageFolder, and where its captions are
IMAGE_FOLDER_CAPTIONS = ("text", "prompt", "caption")


def read_dataset(
    base_path: Path,
    metadata_path: Path | None = None,
    keys: Sequence[str] = ("image",),
    columns: Mapping[str, str] | None = None,
) -> Metadata:
    """Read the rows of a dataset folder; `columns` maps the names that are wanted to those in the table.

    `keys` are the columns that hold files. Without `metadata_path` the folder's own table is used, else the captions
    beside its files.
    """
    path = metadata_path or find_metadata(base_path)
    if path is None:
        if len(keys) != 1:
            raise _no_metadata(base_path, f"which --data-file-keys {','.join(keys)} needs")
        folder = read_folder(base_path, keys[0])
        if folder is None:
            raise _no_metadata(base_path)
        return folder.renamed(columns or {})
    metadata = read_metadata(path)
    metadata = replace(metadata, layout=f"table {path.name} of {len(metadata.rows)} rows")
    return _as_image_folder(metadata.renamed(columns or {}), keys[0])


def _as_image_folder(metadata: Metadata, key: str) -> Metadata:
    """Read `file_name` and `text` as the file and its prompt where the table has them and not ours."""
    if key in metadata.columns or IMAGE_FOLDER_FILE not in metadata.columns:
        return metadata
    captions = [name for name in IMAGE_FOLDER_CAPTIONS if name in metadata.columns]
    if len(captions) > 1 and "prompt" not in captions:
        raise DataError(
            f"{metadata.path} has captions in {' and in '.join(map(repr, captions))}",
            hint=f"say which to use with --column prompt={captions[0]}",
            kind="column",
        )
    mapping = {key: IMAGE_FOLDER_FILE}
    if captions and "prompt" not in captions:
        mapping["prompt"] = captions[0]
    said = " and ".join(f"{old} as {new}" for new, old in mapping.items())
    layout = f"Hugging Face ImageFolder of {len(metadata.rows)} rows: {metadata.path.name} with {said}"
    return replace(metadata.renamed(mapping), layout=layout)


def find_metadata(base_path: Path) -> Path | None:
    """Return the table of a dataset folder, None where there is none; several are refused."""
    found = [base_path / name for name in METADATA_NAMES if (base_path / name).exists()]
    if len(found) > 1:
        raise DataError(
            f"{base_path} has several metadata files: {', '.join(path.name for path in found)}",
            hint="say which one to use with --dataset-metadata-path",
            kind="table",
        )
    return found[0] if found else None


def _no_metadata(base_path: Path, why: str = "") -> DataError:
    """Say that nothing describes the files of a folder, and what was most likely meant."""
    with explained_os_errors(base_path):
        entries = sorted(base_path.iterdir())
    names = [entry.name for entry in entries]
    media = sum(name.lower().endswith(MEDIA_SUFFIXES) for name in names)
    guess = next((near for name in METADATA_NAMES if (near := near_miss(name, names))), None)
    below = next((entry for entry in entries if any((entry / name).is_file() for name in METADATA_NAMES)), None)
    if guess:
        hint = f"did you mean --dataset-metadata-path {base_path / guess}?"
    elif below:
        hint = f"there is one in {below}: give that folder"
    else:
        hint = (
            "write a metadata.csv with the columns image,prompt there, or give --dataset-metadata-path"
            if why
            else "write a metadata.csv with the columns image,prompt there, or each file's caption beside it: "
            "1.txt for 1.png"
        )
    no_captions = "" if why else ", and no file with a caption beside it"
    problem = f"{base_path} has no metadata.csv, .json, .jsonl or .parquet{', ' + why if why else ''}{no_captions}"
    return DataError(f"{problem} ({media} pictures or videos, {len(names)} entries)", hint=hint, kind="table")


def read_metadata(path: Path) -> Metadata:
    """Read a table by its suffix; it must hold at least one row."""
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise DataError(
            f"{path} is not a metadata file that can be read (its suffix is {path.suffix!r})",
            hint=f"known: {', '.join(READERS)}",
            kind="table",
        )
    with explained_os_errors(path):
        if not path.is_file():
            path.stat()  # says what is wrong with a path that leads nowhere
            raise DataError(f"{path} is not a file", hint="give the path of a csv, json, jsonl or parquet file")
        metadata = read(path)
    if not metadata.rows:
        if metadata.columns:
            raise DataError(
                f"{path} has a header but no rows", hint="write one row for each picture below the header", kind="table"
            )
        raise DataError(
            f"{path} is empty", hint="write one row for each picture: its file name and its prompt", kind="table"
        )
    return metadata
