"""Read the arguments of a dataset: its folder, its table, and the names of its columns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.remote import anywhere
from dsctl_core.remote.address import is_remote, is_web, refuse_secrets
from dsctl_core.remote.lookup import list_again


def existing_folder(base_path: str | Path) -> Path:
    """Return the folder of a dataset; raise an error if there is none."""
    if not str(base_path):
        raise UsageError("the dataset's base path is empty", hint="give the folder of the pictures or videos")
    path = Path(base_path)
    refuse_secrets(base_path)
    list_again(path)
    if anywhere.is_dir(path) or is_web(path):
        return path
    if anywhere.exists(path):
        raise DsctlError(f"the dataset's base path {path} is not a folder", hint="give the folder of the file")
    raise DsctlError(f"the dataset folder {path} does not exist", hint="check the path given with --dataset-base-path")


def existing_file(metadata_path: str | Path, base_path: Path) -> Path:
    """Return the table of a dataset; raise an error if there is none."""
    path = Path(metadata_path)
    refuse_secrets(metadata_path)
    if not anywhere.exists(path) and not path.is_symlink():
        inside = base_path / path
        hint = (
            f"did you mean {inside}?"
            if not is_remote(path) and anywhere.is_file(inside)
            else "check the path given with --dataset-metadata-path"
        )
        raise DsctlError(f"the metadata file {str(metadata_path)!r} does not exist", hint=hint)
    return path


def column_names(data_file_keys: str | Iterable[str]) -> tuple[str, ...]:
    """Return the names of columns, which a text separates by commas; none may be empty or repeated."""
    keys = data_file_keys.split(",") if isinstance(data_file_keys, str) else list(data_file_keys)
    names = tuple(key.strip() for key in keys)
    if not all(names):
        raise UsageError(
            f"data_file_keys {data_file_keys!r} names an empty column", hint="separate column names by single commas"
        )
    repeated = next((name for index, name in enumerate(names) if names.index(name) != index), None)
    if repeated is not None:
        raise UsageError(f"data_file_keys names the column {repeated!r} twice", hint="name each column once")
    return names
