"""Read and write mirror.json, which says what of a run is at its mirror: what it does not name does not count."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from dsctl_core.cache.folder import SKIPPED_FILE
from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import json_text
from dsctl_core.files.digest import digest_file
from dsctl_core.files.json import checked, parse_json
from dsctl_core.media.made_file import SAMPLES_FOLDER
from dsctl_core.remote.address import address_of
from dsctl_core.remote.errors import RemoteError, RemoteExists, RemoteMissing
from dsctl_core.remote.store import Remote
from dsctl_core.training.output.folder import (
    CHECKPOINT,
    CSV_FILE,
    METRICS_FILE,
    RUN_FILE,
    TRACKERS_FILE,
)
from dsctl_core.training.state.folder import STATE_FOLDER, StateFile, fault_of, state_folders
from dsctl_core.version import __version__

MIRROR_FILE = "mirror.json"
FORMAT = 1  # increased when older files can no longer be read
TEXTS = (METRICS_FILE, CSV_FILE, SKIPPED_FILE, TRACKERS_FILE, RUN_FILE)  # that change while a run goes on
OF_STATE = re.compile(rf"{STATE_FOLDER}/step-(\d+)/((?:pieces/)?[\w-][\w.-]*)")


class MirrorFile(TypedDict):
    """The content of mirror.json."""

    format: Annotated[int, Field(ge=1)]
    dsctl_version: str
    started: str
    files: dict[str, StateFile]
    uploading: list[str]


@dataclass(frozen=True)
class Record:
    """What is at a mirror.

    Args:
        started: When the run was started, as its run.json says; "" if it was not yet.
        files: The size and the SHA-256 of each file, by name.
        uploading: Names of what is not whole there, or not needed any more; this run may write and remove it.
        version: Of mirror.json itself, in the store.
    """

    started: str = ""
    files: dict[str, StateFile] = field(default_factory=dict)
    uploading: frozenset[str] = frozenset()
    version: str | None = None

    @property
    def states(self) -> list[int]:
        """The steps of the states that are whole there, newest first."""
        steps = {number: True for name in self.files if (number := step_of_state(name)) is not None}
        return sorted(steps.keys() - {step_of_state(name) for name in self.uploading}, reverse=True)

    @property
    def names(self) -> frozenset[str]:
        """All files of the run that are, or may be, there."""
        return self.uploading | self.files.keys()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something of the run that may not be lost."""
        return bool(self.states) or any(CHECKPOINT.fullmatch(name.partition("/")[0]) for name in self.files)


def step_of_state(name: str) -> int | None:
    """Return the step of the state that the file `name` of a run is of; None for another file."""
    found = OF_STATE.fullmatch(name)
    return None if found is None else int(found[1])


class MirrorAddress:
    """The address of a mirror, and its mirror.json."""

    def __init__(self, address: Path) -> None:
        self.address = address_of(address)
        self.remote = Remote(self.address)
        if not self.remote.writable:
            raise RemoteError(f"{self.address} cannot be written to: it is read only", hint="give --mirror s3://...")

    def read(self) -> Record | None:
        """Return what is there; None where nothing is. Raises DsctlError where something else is."""
        entry = self.remote.stat(MIRROR_FILE)
        if entry is None:
            other = next(self.remote.list(), None)
            if other is not None:
                raise DsctlError(
                    f"{self.address} is not empty, and holds no run: dsctl did not write {other.name} there",
                    hint="give another --mirror",
                )
            return None
        where = f"{self.address}/{MIRROR_FILE}"
        found = checked(
            parse_json(self.remote.read(entry).decode("utf-8", "replace"), where, hint="give another --mirror"),
            MirrorFile,
            where,
            hint="give another --mirror",
        )
        if found["format"] != FORMAT:
            raise DsctlError(
                f"{where} has the format {found['format']}, but dsctl {__version__} reads format {FORMAT}",
                hint="give another --mirror",
            )
        return Record(found["started"], found["files"], frozenset(found["uploading"]), entry.version)

    def write(self, record: Record) -> Record:
        """Write mirror.json over the one with the version of `record`, or where there is none; return it as it is now.

        Raises DsctlError where another run has written it since, as far as the store can tell.
        """
        content = MirrorFile(
            format=FORMAT,
            dsctl_version=__version__,
            started=record.started,
            files=dict(sorted(record.files.items())),
            uploading=sorted(record.uploading),
        )
        data, over = json_text(content).encode(), record.version if self.remote.conditional else None
        try:
            version = self.remote.put(MIRROR_FILE, data, if_absent=record.version is None, if_version=over)
        except (RemoteExists, RemoteMissing) as error:
            raise DsctlError(
                f"{self.address}/{MIRROR_FILE} was written by another run", hint="let one run write there at a time"
            ) from error
        return replace(record, version=version)

    def remove(self, record: Record) -> None:
        """Remove mirror.json, unless another run has written it since."""
        self.remote.delete(MIRROR_FILE, record.version if self.remote.conditional else None)


def described(data: bytes | Path) -> StateFile:
    """Return the size and the SHA-256 of a file, or of its content."""
    if isinstance(data, bytes):
        return {"bytes": len(data), "sha256": sha256(data).hexdigest()}
    return {"bytes": data.stat().st_size, "sha256": digest_file(data)}


def files_of_run(folder: Path) -> dict[str, Path]:
    """Return what a mirror has of the run in `folder`, by name: states that are whole, weights, samples, texts."""
    found: list[Path] = []
    for _, state in state_folders(folder):
        if fault_of(state, contents=False) is None:
            found += [path for path in sorted(state.rglob("*")) if OF_STATE.fullmatch(_name(path, folder))]
    for path in sorted(folder.iterdir()):
        if CHECKPOINT.fullmatch(path.name):
            found += sorted(path.rglob("*")) if path.is_dir() else [path]
    found += [path for path in sorted((folder / SAMPLES_FOLDER).glob("*")) if not path.name.startswith(".")]
    found += [folder / name for name in TEXTS]
    return {_name(path, folder): path for path in found if path.is_file() and not path.is_symlink()}


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
