"""What a hub is to the rest: files with sizes and checksums that can be listed, fetched and given."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from dsctl_core.errors import DsctlError

RepoType = Literal["model", "dataset"]
Advance = Callable[[str, int], None]  # a file's path, and how many more bytes of it are done
COMPANION_BYTES = 50_000_000  # configs and indices are smaller than this; what is larger is no companion
BLOCK = 1 << 24


@dataclass(frozen=True)
class RemoteFile:
    """A file on a hub. Its checksum is the SHA-256 of its bytes, or git's SHA-1 of it as a blob."""

    path: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def checksum(self) -> str | None:
        """The checksum, whichever kind it is."""
        return self.sha256 or self.git_sha1


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one revision."""

    revision: str
    files: tuple[RemoteFile, ...]


class Hub(Protocol):
    """A model hub."""

    name: str
    file_limit: int  # bytes

    def list_files(self, repo_id: str, repo_type: RepoType, revision: str | None) -> Listing:
        """Return what is in a repository."""

    def fetch(
        self,
        repo_id: str,
        repo_type: RepoType,
        revision: str,
        files: Sequence[RemoteFile],
        folder: Path,
        *,
        max_workers: int,
        advance: Advance,
        done: Callable[[RemoteFile], None],
    ) -> None:
        """Put files into `folder`, each whole and with the right checksum; call `done` with each when it is there."""

    def upload(
        self,
        repo_id: str,
        files: Sequence[tuple[str, Path]],
        *,
        private: bool,
        revision: str | None,
        message: str,
        advance: Advance,
    ) -> None:
        """Put local files, each under a path in the repository, which is made if it does not exist."""

    def url(self, repo_id: str) -> str:
        """Return the address of the repository's page."""


def check_repo_id(repo_id: str) -> str:
    """Return `repo_id` if it has the form OWNER/NAME; anything else is a DsctlError."""
    parts = repo_id.split("/")
    if (
        len(parts) != 2
        or not all(parts)
        or any(part in (".", "..") or set(part) & set(' \\:*?"<>|@') for part in parts)
    ):
        raise DsctlError(f"{repo_id!r} is no repository", hint="write it as OWNER/NAME")
    return repo_id


def safe_path(path: str) -> PurePosixPath:
    """Return a path in a repository, refusing one that would lead out of the folder it is put into."""
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path or "\0" in path:
        raise DsctlError(
            f"the repository has a file called {path!r}, which leads out of its folder", hint="tell its owner"
        )
    return pure


def matches(path: str, pattern: str) -> bool:
    """Return whether `path` matches a glob whose `*` does not cross folders; a path always matches itself."""
    parts, wanted = path.split("/"), pattern.split("/")
    return path == pattern or (
        len(parts) == len(wanted) and all(fnmatch.fnmatchcase(a, b) for a, b in zip(parts, wanted, strict=True))
    )


def select(files: Iterable[RemoteFile], pattern: str | None) -> list[RemoteFile]:
    """Return the files that a ModelConfig's pattern means: None, "" and "./" all, "dir/" all below, else a glob."""
    wanted = (pattern or "").removeprefix("./")
    if not wanted:
        return list(files)
    if wanted.endswith("/"):
        return [file for file in files if file.path.startswith(wanted)]
    return [file for file in files if matches(file.path, wanted)]


def companions(files: Iterable[RemoteFile], chosen: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Return the configs and index files beside `chosen` weights, without which these are of no use."""
    folders = {file.path.rpartition("/")[0] for file in chosen if file.path.endswith(".safetensors")}
    return [
        file
        for file in files
        if file.path.endswith(".json") and file.size < COMPANION_BYTES and file.path.rpartition("/")[0] in folders
    ]


def filtered(files: Iterable[RemoteFile], include: Sequence[str], exclude: Sequence[str]) -> list[RemoteFile]:
    """Return the files that match an `include` glob (all, without any) and no `exclude` glob; `*` crosses folders."""
    return [
        file
        for file in files
        if (not include or any(fnmatch.fnmatchcase(file.path, glob) for glob in include))
        and not any(fnmatch.fnmatchcase(file.path, glob) for glob in exclude)
    ]


def checksum_of(path: Path, like: RemoteFile) -> str:
    """Return the checksum of a local file, of the kind that `like` has."""
    digest = new_digest(like)
    with path.open("rb") as stream:
        while data := stream.read(BLOCK):
            digest.update(data)
    return digest.hexdigest()


def new_digest(file: RemoteFile) -> hashlib._Hash:
    """Begin a checksum of the kind that `file` has."""
    return hashlib.sha256() if file.sha256 or not file.git_sha1 else hashlib.sha1(f"blob {file.size}\0".encode())
