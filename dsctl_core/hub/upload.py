"""Giving files to a hub: what goes is checked and listed before, and compared with what is there afterwards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsctl_core.errors import DsctlError
from dsctl_core.files.safetensors import check_safetensors
from dsctl_core.hub.remote import Hub, check_repo_id, checksum_of
from dsctl_core.progress import NoTransfers, Transfers
from dsctl_core.readable import readable_bytes

SECRET_NAMES = re.compile(r"^(\.env(\..*)?|\.netrc|\.git-credentials|id_(rsa|ed25519|ecdsa)|credentials(\.json)?)$")
# Tokens of the hubs and of those most often lying about, by their fixed beginnings.
SECRETS = re.compile(
    rb"\bhf_[A-Za-z0-9]{30,}|\bms-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b|\bAKIA[0-9A-Z]{16}\b"
    rb"|\bgh[pousr]_[A-Za-z0-9]{36}|\bsk-[A-Za-z0-9_-]{32,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
SEARCHED = 20_000_000  # bytes; what is larger is no text that somebody wrote a token into
BINARY = (".safetensors", ".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4")


@dataclass(frozen=True)
class Uploaded:
    """What is on the hub now."""

    url: str
    files: list[str]
    size: int


def files_to_upload(path: Path) -> list[tuple[str, Path]]:
    """Return the files that uploading `path` means, each with its path in the repository; nothing hidden.

    A file with a secret's name, or with what looks like a token in it, a link that leads out of the folder, and a
    safetensors file that is not whole are errors.
    """
    if path.is_file():
        found = [(path.name, path)]
    elif path.is_dir():
        found = [(file.relative_to(path).as_posix(), file) for file in sorted(path.rglob("*")) if not file.is_dir()]
    else:
        raise DsctlError(f"{path} does not exist", hint="check the path")
    for name, file in found:
        if SECRET_NAMES.match(file.name):
            raise DsctlError(f"{file} is a file for secrets", hint="move it out of the folder; nothing was uploaded")
        if path.is_dir() and not file.resolve().is_relative_to(path.resolve()):
            raise DsctlError(f"{file} is a link to a place outside {path}", hint="put the file itself there")
        if not file.is_file():
            raise DsctlError(f"{file} leads nowhere", hint="remove it, or put the file there")
        assert name
    seen = [(name, file) for name, file in found if not any(part.startswith(".") for part in name.split("/"))]
    if not seen:
        raise DsctlError(f"{path} holds no files to upload", hint="check the path; hidden files do not count")
    for _, file in seen:
        refuse_secrets(file)
        if file.suffix == ".safetensors":
            check_safetensors(file)
    return seen


def refuse_secrets(file: Path) -> None:
    """Raise a DsctlError, which does not show it, if there is something in a text file that looks like a token."""
    if file.suffix.lower() in BINARY or file.stat().st_size > SEARCHED:
        return
    data = file.read_bytes()
    match = SECRETS.search(data)
    if match is not None:
        line = data.count(b"\n", 0, match.start()) + 1
        raise DsctlError(
            f"{file}, line {line}, has what looks like an access token or a key",
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
    """Upload `files` to a repository, which is made if it does not exist, and prove that they arrived.

    Raises DsctlError when a file is over the hub's limit, and when size or checksum differ there afterwards.
    """
    check_repo_id(repo_id)
    shown = progress or NoTransfers()
    sizes = {name: file.stat().st_size for name, file in files}
    for name, size in sizes.items():
        if size > hub.file_limit:
            raise DsctlError(
                f"{name} has {readable_bytes(size)}, and a file may have {readable_bytes(hub.file_limit)} there",
                hint="save the model in shards",
            )
    shown.start(f"Uploading to {repo_id}", sizes)
    try:
        hub.upload(
            repo_id,
            files,
            private=private,
            revision=revision,
            message=f"Upload {files[0][0] if len(files) == 1 else f'{len(files)} files'} with dsctl",
            advance=shown.advance,
        )
    finally:
        shown.finish()
    there = {file.path: file for file in hub.list_files(repo_id, "model", revision).files}
    for name, file in files:
        remote = there.get(name)
        if remote is None or remote.size != sizes[name]:
            has = "is not there" if remote is None else f"has {remote.size} bytes there, not {sizes[name]}"
            raise DsctlError(f"{repo_id}: {name} {has} after the upload", hint="run it again")
        if remote.checksum is not None and checksum_of(file, remote) != remote.checksum:
            raise DsctlError(f"{repo_id}: {name} has another checksum there after the upload", hint="run it again")
    return Uploaded(hub.url(repo_id), list(sizes), sum(sizes.values()))
