"""The interface of a hub (list, fetch and upload files), and the selection of files in a listing."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from dsctl_core.errors import DsctlError

RepoType = Literal["model", "dataset"]
Advance = Callable[[str, int], None]  # called with the path of a file and the number of new bytes
# JSON files, chat templates, and vocabularies of tokenizers, which lie beside the weights of a model of transformers.
COMPANIONS = (".json", ".jinja", "merges.txt", "vocab.txt", ".model")
COMPANION_BYTES = 50_000_000  # the most bytes of a config or index file
BLOCK = 1 << 24


@dataclass(frozen=True)
class RemoteFile:
    """A file on a hub. Its checksum is the SHA-256 of its bytes, or the SHA-1 of its git blob."""

    path: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def checksum(self) -> str | None:
        """The SHA-256 or else the SHA-1; None if the hub lists neither."""
        return self.sha256 or self.git_sha1


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one revision."""

    revision: str
    files: tuple[RemoteFile, ...]


class Hub(Protocol):
    """A model hub. All methods raise `DsctlError` for errors of the hub, the network or the disk."""

    name: str
    file_limit: int  # the most bytes of a file

    def list_files(self, repo_id: str, repo_type: RepoType, revision: str | None) -> Listing:
        """Return the files of a repository at `revision`; None is its main branch."""

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
        """Download files to `folder` and verify their checksums.

        Args:
            repo_id: The repository, OWNER/NAME.
            repo_type: The type of the repository.
            revision: The revision of the listing that `files` are from.
            files: The files to download.
            folder: The local folder.
            max_workers: The number of files to download at the same time.
            advance: Called with the path of a file and the number of new bytes.
            done: Called with each file that is complete.
        """

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
        """Upload local files; create the repository if it does not exist.

        Args:
            repo_id: The repository, OWNER/NAME.
            files: Pairs of the path in the repository and the local file.
            private: Whether a new repository is private.
            revision: The branch; None is the main branch.
            message: The commit message.
            advance: Called with the path of a file and the number of new bytes.
        """

    def url(self, repo_id: str) -> str:
        """Return the URL of the repository's page."""


def check_repo_id(repo_id: str) -> str:
    """Return `repo_id` if it has the form OWNER/NAME; raise `DsctlError` otherwise."""
    parts = repo_id.split("/")
    if (
        len(parts) != 2
        or not all(parts)
        or any(part in (".", "..") or set(part) & set(' \\:*?"<>|@') for part in parts)
    ):
        raise DsctlError(f"{repo_id!r} is not the name of a repository", hint="write it as OWNER/NAME")
    return repo_id


def matches(path: str, pattern: str) -> bool:
    """Return whether `path` matches a glob; `*` does not match "/". A path always matches itself."""
    parts, wanted = path.split("/"), pattern.split("/")
    return path == pattern or (
        len(parts) == len(wanted) and all(fnmatch.fnmatchcase(a, b) for a, b in zip(parts, wanted, strict=True))
    )


def select(files: Iterable[RemoteFile], pattern: str | None) -> list[RemoteFile]:
    """Return the files that match the pattern of a `ModelConfig`.

    None, "" and "./" match all files, "dir/" all files below the folder, and other patterns are globs (`matches`).
    """
    wanted = (pattern or "").removeprefix("./")
    if not wanted:
        return list(files)
    if wanted.endswith("/"):
        return [file for file in files if file.path.startswith(wanted)]
    return [file for file in files if matches(file.path, wanted)]


def companions(files: Iterable[RemoteFile], chosen: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Return the configs, indices and tokenizers in the folders of the `chosen` weights, which loading them needs."""
    folders = {file.path.rpartition("/")[0] for file in chosen if file.path.endswith(".safetensors")}
    return [
        file
        for file in files
        if file.path.endswith(COMPANIONS) and file.size < COMPANION_BYTES and file.path.rpartition("/")[0] in folders
    ]


def filtered(files: Iterable[RemoteFile], include: Sequence[str], exclude: Sequence[str]) -> list[RemoteFile]:
    """Return the files that match an `include` glob (all, without any) and no `exclude` glob; `*` matches "/" too."""
    return [
        file
        for file in files
        if (not include or any(fnmatch.fnmatchcase(file.path, glob) for glob in include))
        and not any(fnmatch.fnmatchcase(file.path, glob) for glob in exclude)
    ]


def checksum_of(path: Path, like: RemoteFile) -> str:
    """Return the checksum of a local file, with the algorithm of the checksum of `like`."""
    digest = new_digest(like)
    with path.open("rb") as stream:
        while data := stream.read(BLOCK):
            digest.update(data)
    return digest.hexdigest()


def new_digest(file: RemoteFile) -> hashlib._Hash:
    """Return a new hash object for the checksum of `file`: SHA-256, or SHA-1 of a git blob."""
    return hashlib.sha256() if file.sha256 or not file.git_sha1 else hashlib.sha1(f"blob {file.size}\0".encode())
