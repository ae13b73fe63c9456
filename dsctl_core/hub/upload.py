"""Upload files to a hub: check them before, and compare the files on the hub with them afterwards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsctl_core.errors import DsctlError
from dsctl_core.files.safetensors import check_safetensors
from dsctl_core.hub.remote import Hub, check_repo_id, checksum_of
from dsctl_core.progress import NoTransfers, Transfers
from dsctl_core.readable import counted, readable_bytes

SECRET_NAMES = re.compile(r"^(\.env(\..*)?|\.netrc|\.git-credentials|id_(rsa|ed25519|ecdsa)|credentials(\.json)?)$")
# Access tokens of the hubs and of other common services, recognized by their fixed prefixes.
SECRETS = re.compile(
    rb"\bhf_[A-Za-z0-9]{30,}|\bms-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b|\bAKIA[0-9A-Z]{16}\b"
    rb"|\bgh[pousr]_[A-Za-z0-9]{36}|\bsk-[A-Za-z0-9_-]{32,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
MAX_SEARCHED_BYTES = 20_000_000  # larger files are data, not text with a token in it
BINARY = (".safetensors", ".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4")


@dataclass(frozen=True)
class Uploaded:
    """The result of an upload: the URL of the repository, the paths of the files in it, and their total bytes."""

    url: str
    files: list[str]
    size: int


def files_to_upload(path: Path) -> list[tuple[str, Path]]:
    """Return (path in the repository, file) for the file `path`, or for all files in the folder `path` but hidden ones.

    Raises `DsctlError` for a file with the name of a file with secrets, a file with a token in it, a link out of the
    folder, and a safetensors file that is incomplete.
    """
    if path.is_file():
        candidates = [(path.name, path)]
    elif path.is_dir():
        candidates = [
            (file.relative_to(path).as_posix(), file) for file in sorted(path.rglob("*")) if not file.is_dir()
        ]
    else:
        raise DsctlError(f"{path} does not exist", hint="check the path")
    for name, file in candidates:
        if SECRET_NAMES.match(file.name):
            raise DsctlError(
                f"{file} has the name of a file with secrets", hint="move it out of the folder; nothing was uploaded"
            )
        if path.is_dir() and not file.resolve().is_relative_to(path.resolve()):
            raise DsctlError(f"{file} is a link out of {path}", hint="replace it by the file")
        if not file.is_file():
            raise DsctlError(f"{file} is a broken link", hint="remove it, or replace it by the file")
        assert name
    visible = [(name, file) for name, file in candidates if not any(part.startswith(".") for part in name.split("/"))]
    if not visible:
        raise DsctlError(f"{path} has no files to upload", hint="check the path; hidden files are not uploaded")
    for _, file in visible:
        refuse_secrets(file)
        if file.suffix == ".safetensors":
            check_safetensors(file)
    return visible


def refuse_secrets(file: Path) -> None:
    """Raise `DsctlError` if a text file contains an access token or a private key; the message does not show it."""
    if file.suffix.lower() in BINARY or file.stat().st_size > MAX_SEARCHED_BYTES:
        return
    data = file.read_bytes()
    match = SECRETS.search(data)
    if match is not None:
        line = data.count(b"\n", 0, match.start()) + 1
        raise DsctlError(
            f"{file}, line {line}, contains what looks like an access token or a key",
            hint="remove it, and revoke it if anyone else has seen the file; nothing was uploaded",
        )


def upload_to_hub(
    hub: Hub,
    repo_id: str,
    files: Sequence[tuple[str, Path]],
    *,
    private: bool = False,
    revision: str | None = None,
    progress: Transfers | None = None,
) -> Uploaded:
    """Upload `files` to a repository, create it if it does not exist, and verify the files on the hub.

    Args:
        hub: The hub.
        repo_id: The repository, OWNER/NAME.
        files: Pairs of the path in the repository and the local file.
        private: Whether a new repository is private.
        revision: The branch; None is the main branch.
        progress: Shows the transfer.

    Raises `DsctlError` if a file is larger than the hub allows, and if size or checksum on the hub differ afterwards.
    """
    check_repo_id(repo_id)
    transfers = progress or NoTransfers()
    sizes = {name: file.stat().st_size for name, file in files}
    for name, size in sizes.items():
        if size > hub.file_limit:
            raise DsctlError(
                f"{name} has {readable_bytes(size)}, but a file on {hub.name} may have at most "
                f"{readable_bytes(hub.file_limit)}",
                hint="save the model in shards",
            )
    transfers.start(f"Uploading to {repo_id}", sizes)
    try:
        hub.upload(
            repo_id,
            files,
            private=private,
            revision=revision,
            message=f"Upload {files[0][0] if len(files) == 1 else counted(len(files), 'file')} with dsctl",
            advance=transfers.advance,
        )
    finally:
        transfers.finish()
    remote_files = {file.path: file for file in hub.list_files(repo_id, "model", revision).files}
    for name, file in files:
        remote = remote_files.get(name)
        if remote is None or remote.size != sizes[name]:
            difference = "is missing" if remote is None else f"has {remote.size} bytes instead of {sizes[name]}"
            raise DsctlError(f"{repo_id}: {name} {difference} after the upload", hint="run the command again")
        if remote.checksum is not None and checksum_of(file, remote) != remote.checksum:
            raise DsctlError(f"{repo_id}: {name} has another checksum after the upload", hint="run the command again")
    return Uploaded(hub.url(repo_id), list(sizes), sum(sizes.values()))
