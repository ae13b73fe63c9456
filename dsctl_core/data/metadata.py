"""Find and read the metadata of a dataset: a table, a Hugging Face ImageFolder, or caption files."""

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
# The column of file names in a Hugging Face ImageFolder, and the usual columns of its captions.
IMAGE_FOLDER_FILE = "file_name"
IMAGE_FOLDER_CAPTIONS = ("text", "prompt", "caption")


def read_dataset(
    base_path: Path,
    metadata_path: Path | None = None,
    keys: Sequence[str] = ("image",),
    columns: Mapping[str, str] | None = None,
) -> Metadata:
    """Read the metadata of a dataset folder.

    Without `metadata_path` this is the metadata file of the folder, or else the caption files in it. `keys` are the
    columns of file names. `columns` maps the column names that training uses to those in the table. Raises `DataError`
    if there is no metadata, or if it cannot be read.
    """
    path = metadata_path or find_metadata(base_path)
    if path is None:
        if len(keys) != 1:
            raise _no_metadata(base_path, f"which --data-file-keys {','.join(keys)} needs")
        metadata_of_files = read_folder(base_path, keys[0])
        if metadata_of_files is None:
            raise _no_metadata(base_path)
        return metadata_of_files.renamed(columns or {})
    metadata = read_metadata(path)
    metadata = replace(metadata, layout=f"table {path.name} of {len(metadata.rows)} rows")
    return _as_image_folder(metadata.renamed(columns or {}), keys[0])


def _as_image_folder(metadata: Metadata, key: str) -> Metadata:
    """Rename the columns `file_name` and `text` or `caption` to `key` and "prompt" if the table has none of those."""
    if key in metadata.columns or IMAGE_FOLDER_FILE not in metadata.columns:
        return metadata
    captions = [name for name in IMAGE_FOLDER_CAPTIONS if name in metadata.columns]
    if len(captions) > 1 and "prompt" not in captions:
        raise DataError(
            f"{metadata.path} has captions in {' and in '.join(map(repr, captions))}",
            hint=f"choose one of them, such as --column prompt={captions[0]}",
            kind="column",
        )
    mapping = {key: IMAGE_FOLDER_FILE}
    if captions and "prompt" not in captions:
        mapping["prompt"] = captions[0]
    renamed = " and ".join(f"{old} as {new}" for new, old in mapping.items())
    layout = f"Hugging Face ImageFolder of {len(metadata.rows)} rows: {metadata.path.name} with {renamed}"
    return replace(metadata.renamed(mapping), layout=layout)


def find_metadata(base_path: Path) -> Path | None:
    """Return the metadata file of a dataset folder, or None; raise `DataError` if there are several."""
    tables = [base_path / name for name in METADATA_NAMES if (base_path / name).exists()]
    if len(tables) > 1:
        raise DataError(
            f"{base_path} has several metadata files: {', '.join(path.name for path in tables)}",
            hint="choose one of them with --dataset-metadata-path",
            kind="table",
        )
    return tables[0] if tables else None


def _no_metadata(base_path: Path, why: str = "") -> DataError:
    """Return the error for a folder without metadata; its hint names a likely mistake. `why` needs the metadata."""
    with explained_os_errors(base_path):
        entries = sorted(base_path.iterdir())
    names = [entry.name for entry in entries]
    media = sum(name.lower().endswith(MEDIA_SUFFIXES) for name in names)
    guess = next((near for name in METADATA_NAMES if (near := near_miss(name, names))), None)
    subfolder = next((entry for entry in entries if any((entry / name).is_file() for name in METADATA_NAMES)), None)
    if guess:
        hint = f"did you mean --dataset-metadata-path {base_path / guess}?"
    elif subfolder:
        hint = f"there is one in {subfolder}: use that folder"
    else:
        hint = (
            "add a metadata.csv with the columns image,prompt, or give --dataset-metadata-path"
            if why
            else "add a metadata.csv with the columns image,prompt, or a caption file for each file: 1.txt for 1.png"
        )
    no_captions = "" if why else ", and no file in it has a caption file"
    problem = f"{base_path} has no metadata.csv, .json, .jsonl or .parquet{', ' + why if why else ''}{no_captions}"
    return DataError(f"{problem} ({media} pictures or videos, {len(names)} entries)", hint=hint, kind="table")


def read_metadata(path: Path) -> Metadata:
    """Read a table with the reader of its suffix; raise `DataError` if it cannot be read or has no rows."""
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise DataError(
            f"{path} has the suffix {path.suffix!r}, which is not that of a metadata file",
            hint=f"known: {', '.join(READERS)}",
            kind="table",
        )
    with explained_os_errors(path):
        if not path.is_file():
            path.stat()  # raises for a path that does not exist
            raise DataError(f"{path} is not a file", hint="give the path of a csv, json, jsonl or parquet file")
        metadata = read(path)
    if not metadata.rows:
        if metadata.columns:
            raise DataError(
                f"{path} has a header but no rows", hint="add one row for each picture below the header", kind="table"
            )
        raise DataError(
            f"{path} is empty", hint="add one row for each picture: its file name and its prompt", kind="table"
        )
    return metadata
