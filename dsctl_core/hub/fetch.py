"""Getting files from a hub into a folder: only what is missing or not whole, and nothing half at the end.

`.dsctl/files.json` in the folder notes each file that was checked, with its size, time and checksum, so that the next
run need not read 50 GB to know that they are what the hub has.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import prepare_folder, write_json
from dsctl_core.files.lock import locked
from dsctl_core.hub.remote import Hub, RemoteFile, RepoType, checksum_of, safe_path
from dsctl_core.progress import NoTransfers, Transfers
from dsctl_core.readable import readable_bytes

NOTES, PARTS = ".dsctl", "parts"
SPARE = 100_000_000  # bytes that are left free on the disk


@dataclass(frozen=True)
class Fetched:
    """What a download came to: all files that were asked for, and how many of them and bytes came over the network."""

    folder: Path
    files: list[Path]
    new_files: int
    new_bytes: int


def fetch(
    hub: Hub,
    repo_id: str,
    revision: str,
    files: Sequence[RemoteFile],
    folder: Path,
    *,
    repo_type: RepoType = "model",
    max_workers: int = 4,
    progress: Transfers | None = None,
) -> Fetched:
    """Make `files` of a repository be in `folder`, each whole and with the checksum that the hub has.

    What is there already is checked, and kept when it is right; a part of a file is continued. One process at a time
    works in a folder. Raises DsctlError with the remedy; what was finished by then stays.
    """
    shown = progress or NoTransfers()
    paths = [folder / safe_path(file.path) for file in files]
    prepare_folder(folder / NOTES)
    with locked(folder / NOTES / "lock"):
        notes = _Notes(folder / NOTES / "files.json")
        wanted = []
        for file, path in zip(files, paths, strict=True):
            if not notes.is_whole(file, path, shown):
                wanted.append(file)
        if wanted:
            _refuse_full_disk(folder, wanted)
            shown.start(f"Downloading {repo_id}", {file.path: file.size for file in wanted})
            try:
                hub.fetch(
                    repo_id,
                    repo_type,
                    revision,
                    wanted,
                    folder,
                    max_workers=max_workers,
                    advance=shown.advance,
                    done=lambda file: notes.add(file, folder / file.path),
                )
            finally:
                shown.finish()
            for file in wanted:
                if not (folder / file.path).is_file() or (folder / file.path).stat().st_size != file.size:
                    raise DsctlError(f"{folder / file.path} did not arrive whole", hint="run it again")
        _sweep(folder)
    return Fetched(folder, paths, len(wanted), sum(file.size for file in wanted))


class _Notes:
    """What is known of the files in a folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            read = {}  # without notes every file is read once more, and noted again
        self.known: dict[str, Any] = read if isinstance(read, dict) else {}

    def is_whole(self, file: RemoteFile, path: Path, progress: Transfers) -> bool:
        """Return whether `path` is what the hub has; where the notes do not say so, its bytes do."""
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        if file.checksum is None or self.known.get(file.path) == _note(file, path):
            return True
        if file.size > SPARE:
            progress.note(f"Checking {path}")
        if checksum_of(path, file) != file.checksum:
            return False
        self.add(file, path)
        return True

    def add(self, file: RemoteFile, path: Path) -> None:
        """Note that `path` is whole."""
        with self.lock:
            self.known[file.path] = _note(file, path)
            write_json(self.path, self.known)


def _note(file: RemoteFile, path: Path) -> dict[str, Any]:
    return {"size": file.size, "checksum": file.checksum, "mtime_ns": path.stat().st_mtime_ns}


def _refuse_full_disk(folder: Path, files: Iterable[RemoteFile]) -> None:
    started = sum(path.stat().st_size for path in folder.rglob("*.incomplete"))
    started += sum(path.stat().st_size for path in (folder / NOTES / PARTS).glob("*"))
    needed, free = sum(file.size for file in files) - started + SPARE, shutil.disk_usage(folder).free
    if needed > free:
        raise DsctlError(
            f"{readable_bytes(needed)} are needed for {folder}, but {readable_bytes(free)} are free",
            hint="free some disk space, or give another place with --local-dir or DSCTL_MODEL_BASE_PATH",
        )


def _sweep(folder: Path) -> None:
    """Remove the folder of parts when nothing is in it."""
    parts = folder / NOTES / PARTS
    if parts.is_dir() and not any(parts.iterdir()):
        parts.rmdir()
