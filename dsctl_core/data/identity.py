"""Identify a dataset by its rows and by the files that their cells name, which are looked for once in a start."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dsctl_core.data.columns import JoinedRows, Rows, RowsOfClips
from dsctl_core.data.dataset import UnifiedDataset
from dsctl_core.data.facts import Identity
from dsctl_core.data.kinds import media_suffixes
from dsctl_core.data.known_files import CHUNK, is_fresh, state_from
from dsctl_core.data.looking import look_at_files
from dsctl_core.data.stacks import names_in
from dsctl_core.files.digest import digest, digest_sample, digest_samples
from dsctl_core.remote import anywhere
from dsctl_core.remote.address import is_remote, is_web, place_of

LONGEST_NAME = 1000  # characters; a longer cell is a text
MOST_FOLDERS = 1000  # whose state is kept to say that no file was added to them


def identity_of_dataset(dataset: UnifiedDataset) -> Identity:
    """Return the identity of a dataset; it is worked out once for each of several."""
    for part in dataset.parts:
        if part.identity is None:
            look_at_files(part)
            part.identity = _remembered(part) or _Identifier(part).identity()
    found = [part.identity for part in dataset.parts if part.identity is not None]
    if not dataset.tables:
        return found[0]
    return Identity(digest([each.rows for each in found]), digest([each.files for each in found]))


def _remembered(part: UnifiedDataset) -> Identity | None:
    """Return what was kept for the same rows, if no file that they name has changed and none was added."""
    known = part.known
    kept = None if known is None else known.result(_key(part))
    if known is None or kept is None or kept["states"] != known.states:
        return None
    if any(_state_of_folder(folder) != state for folder, state in kept["folders"].items()):
        return None
    return Identity(kept["rows"], kept["files"])


def _key(part: UnifiedDataset) -> str:
    return digest(["identity", place_of(part.base_path), list(part.data_file_keys), _rows(part).digest()])


def _rows(part: UnifiedDataset) -> Rows | RowsOfClips:
    assert not isinstance(part.metadata.rows, JoinedRows)
    return part.metadata.rows


class _Identifier:
    """Goes through the rows of a dataset, and looks for a file of the name of every text in them."""

    def __init__(self, part: UnifiedDataset) -> None:
        self.part, self.known, self.base = part, part.known, part.base_path
        self.inside = str(self.base / "_")[:-1]
        self.sizes = array("q")  # of the files that whole cells name
        self.contents = hashlib.sha256(b"[")
        self.files = 0
        self.others = False  # whether there are files that `known` has not read
        self.folders: set[str] = set()  # in which no file of the name of a cell is

    def identity(self) -> Identity:
        """Return the identity of the dataset, and keep it where it can be told from the states of its files."""
        rows, made = _rows(self.part), hashlib.sha256(b"[")
        for first in range(0, len(rows), CHUNK):
            chunk = rows[first : first + CHUNK]
            texts = ", ".join(json.dumps(row, sort_keys=True, default=str) for row in chunk)
            made.update(f"{', ' if first else ''}{texts}".encode())
            self._look_for_files([name for row in chunk for name in (*_names(row), *self._names_in_folders(row))])
        made.update(b"]")
        for first in range(0, len(self.sizes), CHUNK):
            made.update("".join(f"{size} " for size in self.sizes[first : first + CHUNK]).encode())
        self.contents.update(b"]")
        found = Identity(made.hexdigest(), self.contents.hexdigest())
        if self.known is not None and not self.others and len(self.folders) <= MOST_FOLDERS:
            folders = {folder: _state_of_folder(folder) for folder in self.folders}
            if None not in folders.values():
                about = {"states": self.known.states, "folders": folders}
                self.known.keep(_key(self.part), {**found._asdict(), **about})
        return found

    def _names_in_folders(self, row: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
        """Yield the files in the folders that the file columns of a row name."""
        for cell in (row.get(key) for key in self.part.data_file_keys):
            if not isinstance(cell, str) or not cell.strip() or "\0" in cell:
                continue
            if (self.known is None or not self.known.has(self.inside + cell)) and anywhere.is_dir(self.base / cell):
                self.others = True
                yield from ((f"{cell}/{name}", False) for name in names_in(self.base / cell))

    def _look_for_files(self, names: list[tuple[str, bool]]) -> None:
        """Add the files among `names`, each with whether it is a whole cell, to what makes the identity."""
        paths = [f"{self.inside}{name}" if name[0] != "/" else str(self.base / name) for name, _ in names]
        known = self.known.records(paths) if self.known is not None else {}
        found: dict[str, tuple[int, str]] = {
            path: (each.size, each.sample.hex()) for path, each in known.items() if each.sample
        }
        new: dict[Path, int] = {}
        for path in dict.fromkeys(paths):
            if path not in found and (size := self._size_of(path)) is not None:
                new[Path(path)] = size
        self.others = self.others or bool(new)
        digests = anywhere.digests(new, digest_samples, digest_sample) if new else {}
        found |= {str(path): (size, digests[path]) for path, size in new.items()}
        for path, (_, is_cell) in zip(paths, names, strict=True):
            if (about := found.get(path) or found.get(str(Path(path)))) is None:
                continue
            if is_cell:
                self.sizes.append(about[0])
            self.contents.update(f'{"," if self.files else ""}"{about[1]}"'.encode())
            self.files += 1

    def _size_of(self, path: str) -> int | None:
        """Return the size of the file at `path`; None if there is none, and then note the folder it would be in."""
        if anywhere.is_apart(path):
            # A web server is not asked for a file of the name of each prompt.
            asked = not is_web(path) or Path(path).suffix.lower() in media_suffixes()
            size = anywhere.file_size(path) if asked else None
            if size is None:
                self.folders.add(str(self.base))
            return size
        try:
            status = os.stat(path)  # noqa: PTH116 - for millions of texts
        except ValueError:
            return None
        except OSError:
            folder = path.rpartition("/")[0] or "/"
            while folder not in self.folders and folder not in ("/", "") and not Path(folder).is_dir():
                folder = folder.rpartition("/")[0]
            self.folders.add(folder)
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None


def _names(row: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Yield every text in a row that may be a file name, with whether it is a whole cell."""
    for cell in row.values():
        if type(cell) is str:
            if 0 < len(cell) < LONGEST_NAME and "\0" not in cell:
                yield cell, True
        elif isinstance(cell, Mapping | list | tuple):
            yield from ((text, False) for text in _texts(cell))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, str) and 0 < len(value) < LONGEST_NAME and "\0" not in value:
        yield value


def _state_of_folder(folder: str) -> str | None:
    """Return what a new file in a folder changes; None for a folder that has just been changed, and for none."""
    if is_remote(folder) or folder.endswith(".tar"):
        return anywhere.state_of_folder(Path(folder))
    try:
        status = Path(folder).stat()
    except OSError:
        return None
    return None if is_fresh(status) else state_from(status).hex()
