"""Download files from a hub to a folder: only those that are missing or incomplete, each verified by its checksum.

`.dsctl/files.json` in the folder records size, modification time and checksum of each verified file, so that the next
run does not have to read 50 GB to verify them again.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import prepare_folder, write_json
from dsctl_core.files.json import read_json
from dsctl_core.files.lock import locked
from dsctl_core.hub.parts import PARTS
from dsctl_core.hub.remote import Hub, RemoteFile, RepoType, checksum_of
from dsctl_core.hub.targets import NOTES, ignores_case, refuse_alike, refuse_to_replace, require_inside, targets
from dsctl_core.progress import NoTransfers, Transfers
from dsctl_core.readable import readable_bytes

SPARE = 100_000_000  # bytes that stay free on the disk


@dataclass(frozen=True)
class Fetched:
    """The result of a download: all requested files, and the numbers of files and bytes that were downloaded."""

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
    """Download `files` of a repository to `folder`, and verify their checksums.

    Files in the folder are verified and not downloaded again; a partial file is continued. A lock keeps other processes
    out of the folder. Files that were completed before an error remain. Nothing is written outside the folder, and no
    file is replaced that an earlier download did not bring.

    Args:
        hub: The hub.
        repo_id: The repository, OWNER/NAME.
        revision: The revision of the listing that `files` are from.
        files: The files to download.
        folder: The local folder.
        repo_type: The type of the repository.
        max_workers: The number of files to download at the same time.
        progress: Shows the transfer.

    Raises `DsctlError` if the hub refuses, if the disk is full, if a file does not have its checksum, and for a file
    that may not be written (see dsctl_core.hub.targets).
    """
    transfers = progress or NoTransfers()
    files = list({file.path: file for file in files}.values())
    paths = targets((file.path for file in files), folder)
    for ours in (folder / NOTES, folder / NOTES / PARTS):
        require_inside(ours, folder)
    prepare_folder(folder / NOTES)
    if ignores_case(folder):
        refuse_alike(file.path for file in files)
    with locked(folder / NOTES / "lock"):
        verified = _VerifiedFiles(folder / NOTES / "files.json")
        missing = []
        for file, path in zip(files, paths, strict=True):
            if not verified.is_whole(file, path, transfers):
                missing.append(file)
        if missing:
            to_write = zip(files, paths, strict=True)
            wanted = {file.path for file in missing}
            refuse_to_replace(
                [(file.path, path) for file, path in to_write if file.path in wanted], folder, verified.known.keys()
            )
            _refuse_full_disk(folder, missing)
            transfers.start(f"Downloading {repo_id}", {file.path: file.size for file in missing})
            try:
                hub.fetch(
                    repo_id,
                    repo_type,
                    revision,
                    missing,
                    folder,
                    max_workers=max_workers,
                    advance=transfers.advance,
                    done=lambda file: verified.add(file, folder / file.path),
                )
            finally:
                transfers.finish()
            for file in missing:
                if not (folder / file.path).is_file() or (folder / file.path).stat().st_size != file.size:
                    raise DsctlError(f"{folder / file.path} is incomplete", hint="run the command again")
        _remove_parts_folder(folder)
    return Fetched(folder, paths, len(missing), sum(file.size for file in missing))


class _VerifiedFiles:
    """The record of the verified files in a folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        self.known: dict[str, Any] = {}
        with contextlib.suppress(DsctlError):  # without the record every file is read and verified again
            self.known = read_json(path)

    def is_whole(self, file: RemoteFile, path: Path, progress: Transfers) -> bool:
        """Return whether `path` has the content that the hub lists; compute its checksum if it is not in the record."""
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        if file.checksum is None or self.known.get(file.path) == _record(file, path):
            return True
        if file.size > SPARE:
            progress.note(f"Verifying {path}")
        if checksum_of(path, file) != file.checksum:
            return False
        self.add(file, path)
        return True

    def add(self, file: RemoteFile, path: Path) -> None:
        """Record that `path` is verified."""
        with self.lock:
            self.known[file.path] = _record(file, path)
            write_json(self.path, self.known)


def _record(file: RemoteFile, path: Path) -> dict[str, Any]:
    return {"size": file.size, "checksum": file.checksum, "mtime_ns": path.stat().st_mtime_ns}


def _refuse_full_disk(folder: Path, files: Iterable[RemoteFile]) -> None:
    started = sum(path.stat().st_size for path in (folder / NOTES / PARTS).rglob("*") if path.is_file())
    needed, free = sum(file.size for file in files) - started + SPARE, shutil.disk_usage(folder).free
    if needed > free:
        raise DsctlError(
            f"{readable_bytes(needed)} are needed for {folder}, but {readable_bytes(free)} are free",
            hint="free some disk space, or choose another folder with --local-dir or DSCTL_MODEL_BASE_PATH",
        )


def _remove_parts_folder(folder: Path) -> None:
    """Remove the folder of partial files, and those in it, as far as they are empty."""
    parts = folder / NOTES / PARTS
    for path in [*sorted(parts.rglob("*"), reverse=True), parts]:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
