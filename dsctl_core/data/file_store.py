"""Keep what was found out about the files of a dataset, for the next command: an SQLite file for each dataset folder.

It lies in the user's cache folder, never beside the dataset: a dataset that was downloaded must not bring its own proof
of being whole, many datasets cannot be written to, and their folders stay as they are.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from dsctl_core.files.user_cache import user_cache
from dsctl_core.remote.address import address_of, is_remote
from dsctl_core.version import __version__

FOLDER = "files"  # in the user's cache folder
NAME = re.compile(r"[0-9a-f]{32}\.sqlite")
APPLICATION = 0x64734631  # in the header of the files that are ours
CHECKS = 1  # increased when a file may be found to be something else than before
ASKED = 500  # names in one query
WAIT = 20  # seconds for another command that writes
UNUSED = 180 * 86400  # seconds after which the file of a dataset that nobody opens is removed
RESULTS = 32  # results of whole datasets that are kept

FILES = """CREATE TABLE files (
    name TEXT PRIMARY KEY, stat BLOB NOT NULL, session BLOB, width INTEGER NOT NULL,
    height INTEGER NOT NULL, bytes INTEGER NOT NULL, sample BLOB, whole BLOB, decoded TEXT, frames BLOB)
    WITHOUT ROWID"""
RESULT = "CREATE TABLE results (key TEXT PRIMARY KEY, value TEXT NOT NULL, made REAL NOT NULL) WITHOUT ROWID"
CHUNK = """CREATE TABLE chunks (
    names BLOB PRIMARY KEY, states BLOB NOT NULL, sizes BLOB NOT NULL, used INTEGER NOT NULL) WITHOUT ROWID"""
READERS = "CREATE TABLE readers (versions TEXT NOT NULL)"
TABLES = (("files", FILES), ("results", RESULT), ("chunks", CHUNK), ("readers", READERS))
COLUMNS = "name, stat, session, width, height, bytes, sample, whole, decoded, frames"


class Record(NamedTuple):
    """What is kept of a file.

    `stat` is what tells its state on the disk from others. `session` names the command that wrote this, where only that
    one may use it. `size` is in bytes, `sample` and `whole` are digests,
    `decoded` is what a validation found, as JSON, and `frames` has the times of a clip (`pack_times`).
    """

    name: str
    stat: bytes
    session: bytes | None
    width: int
    height: int
    size: int
    sample: bytes | None = None
    whole: bytes | None = None
    decoded: str | None = None
    frames: bytes | None = None


class FileStore:
    """Records of files by name, and results by key. Without a `path`, or where that fails, for this process alone.

    Whatever is wrong with the file is said with `note` and makes it anew: nothing in it is needed.
    """

    def __init__(self, path: Path | None, note: Callable[[str], None]) -> None:
        self.path, self.note = path, note
        self._lock = Lock()
        self._database = self._opened()

    def __del__(self) -> None:
        if hasattr(self, "_database"):
            self._database.close()

    def find(self, names: Sequence[str]) -> dict[str, Record]:
        """Return the records of those of `names` that have one."""
        found: dict[str, Record] = {}
        for first in range(0, len(names), ASKED):
            asked = names[first : first + ASKED]
            query = f"SELECT {COLUMNS} FROM files WHERE name IN ({','.join('?' * len(asked))})"
            found.update((row[0], Record._make(row)) for row in self._do(query, asked))
        return found

    def put(self, records: Iterable[Record]) -> None:
        """Keep records, in place of those of the same names."""
        marks = ",".join("?" * len(Record._fields))
        rows = [tuple(record) for record in records]
        if rows:
            self._do(f"INSERT OR REPLACE INTO files ({COLUMNS}) VALUES ({marks})", rows, many=True)

    def clear(self) -> None:
        """Forget everything."""
        for table in ("files", "results", "chunks"):
            self._do(f"DELETE FROM {table}", [])

    def chunk(self, names: bytes) -> tuple[bytes, bytes] | None:
        """Return the states and the sizes of the pictures whose names have this digest, if they were kept."""
        return next(iter(self._do("SELECT states, sizes FROM chunks WHERE names = ?", [names])), None)

    def keep_chunk(self, names: bytes, states: bytes, sizes: bytes, most: int) -> None:
        """Keep the states and the sizes of pictures in the order of their names; the oldest of more than `most` go."""
        newest = "(SELECT coalesce(max(used), 0) FROM chunks)"
        self._do(f"INSERT OR REPLACE INTO chunks VALUES (?, ?, ?, {newest} + 1)", [names, states, sizes])
        self._do(f"DELETE FROM chunks WHERE used <= {newest} - ?", [most])

    def result(self, key: str) -> str | None:
        """Return the result that was kept with this key."""
        return next((value for (value,) in self._do("SELECT value FROM results WHERE key = ?", [key])), None)

    def keep(self, key: str, value: str) -> None:
        """Keep a result; the oldest of too many go."""
        self._do("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", [key, value, time.time()])
        newest = f"SELECT key FROM results ORDER BY made DESC LIMIT {RESULTS}"
        self._do(f"DELETE FROM results WHERE key NOT IN ({newest})", [])

    def _do(self, command: str, values: Sequence[object], *, many: bool = False) -> list[tuple]:
        with self._lock:
            try:
                return self._run(command, values, many)
            except sqlite3.Error as error:
                self.note(f"{self.path} cannot be used, so nothing is remembered of the files: {error}")
                self._database.close()
                self.path, self._database = None, _temporary()
                return self._run(command, values, many)

    def _run(self, command: str, values: Sequence[object], many: bool) -> list[tuple]:
        with self._database:
            run = self._database.executemany if many else self._database.execute
            return run(command, values).fetchall()  # type: ignore[arg-type]

    def _opened(self) -> sqlite3.Connection:
        if self.path is None:
            return _temporary()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(self.path) and not _is_ours(self.path):
                return self._made_anew("it is not a file that dsctl has written")
            try:
                return _ready(_connected(self.path))
            except sqlite3.OperationalError:
                raise  # busy, or not allowed: it may be whole
            except sqlite3.DatabaseError as error:
                return self._made_anew(str(error))
        except (OSError, sqlite3.Error) as error:
            self.note(f"{self.path} cannot be used, so nothing is remembered of the files: {error}")
            self.path = None
            return _temporary()

    def _made_anew(self, why: str) -> sqlite3.Connection:
        assert self.path is not None
        self.note(f"{self.path}, which remembers the files of a dataset, is made anew: {why}")
        for path in (self.path, self.path.with_name(f"{self.path.name}-journal")):
            path.unlink(missing_ok=True)
        return _ready(_connected(self.path))


def store_path(base_path: Path) -> Path | None:
    """Return where the files of the dataset folder `base_path` are remembered; None if the user has no home folder."""
    folder = user_cache()
    if folder is None:
        return None
    name = hashlib.sha256(
        os.fsencode(address_of(base_path) if is_remote(base_path) else base_path.resolve())
    ).hexdigest()[:32]
    return folder / FOLDER / f"{name}.sqlite"


def remove_unused(folder: Path) -> None:
    """Remove the files of datasets that no command has opened for half a year."""
    with suppress(OSError):
        for path in folder.iterdir():
            if NAME.fullmatch(path.name) and time.time() - path.stat().st_mtime > UNUSED and _is_ours(path):
                path.unlink(missing_ok=True)


def _temporary() -> sqlite3.Connection:
    """Return a database for this process alone; SQLite keeps it in a temporary file where it is large."""
    return _ready(_connected(""))


def _connected(path: Path | str) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=WAIT, check_same_thread=False)  # `FileStore` has a lock


def _ready(database: sqlite3.Connection) -> sqlite3.Connection:
    """Give a database its tables, unless it has them for the versions of today's readers."""
    versions = f"{CHECKS} dsctl {__version__} {_readers()}"
    try:
        database.execute("PRAGMA synchronous = NORMAL")
        if _fits(database, versions):
            return database
        database.isolation_level = None
        database.execute("BEGIN IMMEDIATE")  # waits for another command that is here
        if not _fits(database, versions):
            for table, columns in TABLES:
                database.execute(f"DROP TABLE IF EXISTS {table}")
                database.execute(columns)
            database.execute("INSERT INTO readers VALUES (?)", (versions,))
            database.execute(f"PRAGMA application_id = {APPLICATION}")
            database.execute(f"PRAGMA user_version = {CHECKS}")
        database.execute("COMMIT")
        database.isolation_level = "DEFERRED"
        return database
    except BaseException:
        database.close()
        raise


def _fits(database: sqlite3.Connection, versions: str) -> bool:
    """Return whether a database has our tables, written with these versions of the readers."""
    if database.execute("PRAGMA user_version").fetchone()[0] != CHECKS:
        return False
    tables = dict(database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
    if tables != dict(TABLES):
        return False
    return bool(database.execute("SELECT versions FROM readers").fetchone() == (versions,))


def _readers() -> str:
    """Return the versions of the libraries that say whether a file is whole."""
    import importlib.metadata

    versions = []
    for name in ("Pillow", "pillow-heif", "pillow-jxl-plugin", "av"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(versions)


def _is_ours(path: Path) -> bool:
    """Return whether a file is empty or has the header of a database of ours; a link is not."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as stream:
        head = stream.read(100)
    return not head or (head.startswith(b"SQLite format 3\0") and int.from_bytes(head[68:72], "big") == APPLICATION)
