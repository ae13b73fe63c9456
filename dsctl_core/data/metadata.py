"""Find and read the metadata of a dataset: a table, a Hugging Face ImageFolder, caption files, or pairs of folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dsctl_core.data.columns import Row
from dsctl_core.data.folder import Files, list_files, read_folder
from dsctl_core.data.pairs import find_pair, read_pair, refuse_unread_pair
from dsctl_core.data.parquet import read_parquet
from dsctl_core.data.problems import DataError, explained_os_errors
from dsctl_core.data.rows import Metadata, text_cell
from dsctl_core.data.shards import named_shards, read_shards
from dsctl_core.data.tables import read_csv, read_json, read_jsonl
from dsctl_core.data.tables_of_files import read_tables, require_all_parts, with_files
from dsctl_core.errors import near_miss
from dsctl_core.readable import counted
from dsctl_core.remote import anywhere
from dsctl_core.remote.archives import PARQUET, TAR

__all__ = ["METADATA_NAMES", "Metadata", "Row", "find_metadata", "read_dataset", "read_metadata", "text_cell"]

READERS: dict[str, Callable[[Path], Metadata]] = {
    ".csv": read_csv,
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}
METADATA_NAMES = tuple(f"metadata{suffix}" for suffix in READERS)
SHOWN_SUFFIXES = 5
# The column of file names in a Hugging Face ImageFolder, and the usual columns of its captions.
IMAGE_FOLDER_FILE = "file_name"
IMAGE_FOLDER_CAPTIONS = ("text", "prompt", "caption")


def read_dataset(
    base_path: Path,
    metadata_path: Path | None = None,
    keys: Sequence[str] = ("image",),
    columns: Mapping[str, str] | None = None,
    *,
    uncaptioned: bool = False,
) -> Metadata:
    """Read the metadata of a dataset folder.

    Without `metadata_path` this is the metadata file of the folder, or else the caption files in it, or for two `keys`
    a pair of folders. `keys` are the columns of file names. `columns` maps the column names that training uses to those
    in the table. With `uncaptioned` a folder of files needs no captions. Raises `DataError` if there is no metadata, or
    if it cannot be read.
    """
    path = metadata_path or find_metadata(base_path)
    if path is None:
        return _without_table(base_path, keys, columns or {}, uncaptioned)
    metadata = with_files(read_metadata(path), base_path, path)
    return _as_image_folder(metadata.renamed(columns or {}), keys[0])


def _without_table(base_path: Path, keys: Sequence[str], columns: Mapping[str, str], uncaptioned: bool) -> Metadata:
    """Read shards, or the Parquet files of a dataset of Hugging Face, or else a folder of files."""
    named = named_shards(base_path)
    if named:
        return read_shards(base_path, named, [columns.get(key, key) for key in keys]).renamed(columns)
    files = list_files(base_path)
    packed = [path for path in files.others if not files.media and path.suffix in (TAR, PARQUET)]
    names = [path.relative_to(base_path).as_posix() for path in packed if path.suffix == TAR]
    if names:
        require_all_parts([path for path in packed if path.suffix == TAR])
        return read_shards(base_path, names, [columns.get(key, key) for key in keys]).renamed(columns)
    if packed:
        metadata = read_tables(base_path, packed, read_metadata)
        return _as_image_folder(metadata.renamed(columns), keys[0])
    return _read_files(base_path, files, keys, uncaptioned).renamed(columns)


def _read_files(base_path: Path, files: Files, keys: Sequence[str], uncaptioned: bool) -> Metadata:
    """Read a folder without a table: captions beside files, or a pair of folders for two columns of files."""
    if len(keys) == 1:
        refuse_unread_pair(base_path, keys[0], files)
        metadata = read_folder(base_path, keys[0], files, uncaptioned=uncaptioned)
        if metadata is None:
            raise _no_metadata(base_path, files)
        return metadata
    pair = find_pair(base_path, files) if len(keys) == 2 else None
    if pair is None:
        raise _no_metadata(base_path, files, f"which --data-file-keys {','.join(keys)} needs")
    return read_pair(base_path, pair, keys, files)


def _as_image_folder(metadata: Metadata, key: str) -> Metadata:
    """Rename the columns `file_name` and `text` or `caption` to `key` and "prompt" if the table has none of those."""
    name, rows = metadata.path.name, len(metadata.rows)
    if key in metadata.columns or IMAGE_FOLDER_FILE not in metadata.columns:
        return replace(metadata, layout=f"table {name} of {counted(rows, 'row')}{metadata.layout}")
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
    layout = f"Hugging Face ImageFolder of {counted(rows, 'row')}: {name} with {renamed}{metadata.layout}"
    return replace(metadata.renamed(mapping), layout=layout)


def find_metadata(base_path: Path) -> Path | None:
    """Return the metadata file of a dataset folder, or None; raise `DataError` if there are several."""
    tables = [base_path / name for name in METADATA_NAMES if anywhere.exists(base_path / name)]
    if len(tables) > 1:
        raise DataError(
            f"{base_path} has several metadata files: {', '.join(path.name for path in tables)}",
            hint="choose one of them with --dataset-metadata-path",
            kind="table",
        )
    return tables[0] if tables else None


def _no_metadata(base_path: Path, files: Files, why: str = "") -> DataError:
    """Return the error for a folder without metadata; its hint names a likely mistake. `why` needs the metadata."""
    with explained_os_errors(base_path):
        names = [each.name for each in anywhere.inside(base_path)]
    guess = next((near for name in METADATA_NAMES if (near := near_miss(name, names))), None)
    folders = (base_path / name for name in names)
    subfolder = next((each for each in folders if any(anywhere.is_file(each / name) for name in METADATA_NAMES)), None)
    if guess:
        hint = f"did you mean --dataset-metadata-path {base_path / guess}?"
    elif subfolder:
        hint = f"there is one in {subfolder}: use that folder"
    elif why:
        hint = "add a metadata.csv with these columns and prompt, or put the pictures into target/ and control/"
    elif files.media:
        hint = "add a metadata.csv with the columns image,prompt, or a caption file for each file: 1.txt for 1.png"
    else:
        hint = "use the folder of the pictures, with a metadata.csv or with a caption file for each: 1.txt for 1.png"
    no_captions = "" if why else ", and no file in it has a caption file"
    problem = f"{base_path} has no metadata.csv, .json, .jsonl or .parquet{', ' + why if why else ''}{no_captions}"
    return DataError(f"{problem} (it has {_contents(files)})", hint=hint, kind="table")


def _contents(files: Files) -> str:
    """Return what lies in a folder: "2 pictures or videos, 3 .pdf (no pictures)"."""
    suffixes = Counter(path.suffix.lower() or "files without a suffix" for path in files.others)
    others = [f"{count} {suffix}" for suffix, count in suffixes.most_common(SHOWN_SUFFIXES)]
    if len(suffixes) > SHOWN_SUFFIXES:
        others.append(f"files of {len(suffixes) - SHOWN_SUFFIXES} other kinds")
    unused = f"{', '.join(others)}, which are not read as pictures" if others else ""
    return ", ".join(filter(None, (counted(len(files.media), "picture or video", "pictures or videos"), unused)))


def _read_copy(path: Path, read: Callable[[Path], Metadata]) -> Metadata:
    """Read a remote table: its errors name it, not the local copy."""
    with anywhere.local(path) as copy:
        try:
            return replace(read(copy), path=path)
        except DataError as error:
            renamed = {str(copy): str(path), copy.name: path.name}
            texts = [error.problem, error.hint or ""]
            for old, new in renamed.items():
                texts = [text.replace(old, new) for text in texts]
            raise DataError(texts[0], hint=texts[1] or None, kind=error.kind) from error


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
        if not anywhere.is_file(path):
            anywhere.size_of(path)  # raises for a path that does not exist
            raise DataError(f"{path} is not a file", hint="give the path of a csv, json, jsonl or parquet file")
        metadata = _read_copy(path, read) if anywhere.is_apart(path) else read(path)
    if not len(metadata.rows):
        if metadata.columns:
            raise DataError(
                f"{path} has a header but no rows", hint="add one row for each picture below the header", kind="table"
            )
        raise DataError(
            f"{path} is empty", hint="add one row for each picture: its file name and its prompt", kind="table"
        )
    return metadata
