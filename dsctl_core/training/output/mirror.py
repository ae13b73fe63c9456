"""Copy a run to an address while it goes on, and take it up from there on another machine.

The run works in its output folder alone. A thread uploads what is new there when a state has been written, and at the
end of the run; mirror.json comes last, so that what it names is whole. An upload that fails is made again with the next
one, and at the latest at the end, where it is an error. Nothing local depends on it.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from dsctl_core.errors import DsctlError, Stopped
from dsctl_core.files.atomic import atomic_folder, atomic_path, prepare_folder
from dsctl_core.files.json import read_json
from dsctl_core.files.lock import locked
from dsctl_core.readable import readable_bytes
from dsctl_core.remote.errors import RemoteExists, RemoteMissing
from dsctl_core.training.output.folder import RUN_FILE, refuse_used
from dsctl_core.training.output.mirror_record import (
    OF_STATE,
    TEXTS,
    MirrorAddress,
    Record,
    described,
    files_of_run,
    step_of_state,
)
from dsctl_core.training.output.preflight import require_space
from dsctl_core.training.state.folder import STATE_FOLDER, SavedState, StateFile, fault_of, state_folders

AGAIN = 60.0  # seconds after which an upload that failed is made again
FETCH_LOCK = ".mirror.lock"


class Mirror:
    """The mirror at `address` of the run in `folder`, which has the `limit` newest states."""

    def __init__(self, folder: Path, address: Path, limit: int) -> None:
        self.folder, self.limit, self.store = folder, limit, MirrorAddress(address)
        self.address = self.store.address
        self.failed: DsctlError | None = None
        self._record = Record()
        self._sent: dict[str, tuple[int, int]] = {}  # size and time of the local files that are there as they are
        self._new, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def fetch(self, note: Callable[[str], None]) -> None:
        """Have the newest state in the folder, from the mirror if it is newer there, and what else a run goes on with.

        Every process of a run may call this: the first of a machine fetches. Raises DsctlError for a mirror of another
        run, or a folder with something else.
        """
        record = self.store.read()
        if record is None or not record.states:
            return
        prepare_folder(self.folder)
        with locked(self.folder / FETCH_LOCK):
            if record.states[0] > _newest(self.folder):
                self._refuse_another(record)
                if not state_folders(self.folder):
                    refuse_used(self.folder)
                self._fetch(record, record.states[0])
                note(f"The state of step {record.states[0]} was fetched from {self.address}")

    def _fetch(self, record: Record, step: int) -> None:
        names = [name for name in record.files if step_of_state(name) == step]
        require_space(self.folder, sum(record.files[name]["bytes"] for name in names))
        prepare_folder(self.folder / STATE_FOLDER)
        for name in TEXTS:
            if name in record.files:
                with atomic_path(self.folder / name) as temporary:
                    self._pull(record, name, temporary, exact=name not in record.uploading)
        with atomic_folder(self.folder / STATE_FOLDER / f"step-{step}", remove=shutil.rmtree) as folder:
            for name in names:
                found = OF_STATE.fullmatch(name)
                assert found is not None
                (folder / found[2]).parent.mkdir(exist_ok=True)
                self._pull(record, name, folder / found[2])

    def _pull(self, record: Record, name: str, target: Path, *, exact: bool = True) -> None:
        made, size = sha256(), 0
        with target.open("wb") as stream:

            def take(block: bytes) -> None:
                nonlocal size
                stream.write(block)
                made.update(block)
                size += len(block)

            self.store.remote.pull(name, take)
        if exact and record.files[name] != {"bytes": size, "sha256": made.hexdigest()}:
            raise DsctlError(
                f"{self.address}/{name} is not what mirror.json says: {readable_bytes(size)} of another content",
                hint="remove it there, with its state, to go on from an earlier one",
            )

    def refuse_misfit(self, state: SavedState | None) -> None:
        """Raise a DsctlError unless the run that goes on from `state` in the folder may be written to the address.

        A new run, without a state, may where nothing is that may not be lost; one that goes on, where it is itself.
        """
        record = self.store.read()
        if record is None or not record.has_checkpoint:
            return
        if state is None:
            raise DsctlError(
                f"{self.address} already holds a run",
                hint="give another --mirror, or go on with it by --resume latest",
            )
        self._refuse_another(record)
        if record.states and record.states[0] > state.step:
            raise DsctlError(
                f"{self.address} has a later state (step-{record.states[0]}), which going on from "
                f"{state.folder.name} would mix with",
                hint="give another --output-path and --mirror, and the run branches off there",
            )

    def _refuse_another(self, record: Record) -> None:
        own = _started(self.folder)
        if record.has_checkpoint and own not in (None, record.started):
            raise DsctlError(
                f"{self.address} holds another run than {self.folder}: it was started at {record.started}, not {own}",
                hint="give another --mirror",
            )

    @contextmanager
    def copying(self, note: Callable[[str], None]) -> Iterator[None]:
        """Upload what the block writes, at its end what is left, also after an error.

        Raises DsctlError where that fails; of a run that failed by itself, that is a note.
        """
        before = self.store.read() or Record()
        left = before if before.has_checkpoint else Record(uploading=before.names, version=before.version)
        self._record = self.store.write(left)  # now, so that an address without permission is known
        self._thread.start()
        try:
            yield
        except Exception as error:
            failed = self._finish()
            if failed is not None and isinstance(error, Stopped):
                raise failed from error
            if failed is not None:
                note(f"Warning: {failed.problem}")
            raise
        failed = self._finish()
        if failed is not None:
            raise failed

    def request(self) -> None:
        """Upload what is new, as soon as the thread can: something is whole."""
        self._new.set()

    def _finish(self) -> DsctlError | None:
        """Upload the rest; return the error for what could not be."""
        self._ended.set()
        self._new.set()
        self._thread.join()
        try:
            self._upload()
            if not self._record.names:  # the run ended before its first step
                self.store.remove(self._record)
        except DsctlError as error:
            return DsctlError(
                f"{self.address} has not all of this run: {error.problem}",
                hint=f"it is whole in {self.folder}: the same command with --resume latest uploads what is missing",
            )
        return None

    def _work(self) -> None:
        while not self._ended.is_set():
            self._new.wait(None if self.failed is None else AGAIN)
            self._new.clear()
            if self._ended.is_set():
                return
            try:
                self._upload()
                self.failed = None
            except DsctlError as error:
                self.failed = error

    def _upload(self) -> None:
        """Do as `_upload_new`; an error of the disk is a DsctlError, too."""
        try:
            self._upload_new()
        except OSError as error:
            raise DsctlError(f"{self.folder} cannot be read: {error}", hint="check the disk") from error

    def _upload_new(self) -> None:
        """Upload what is new in the folder, then mirror.json; then remove states of which there are too many."""
        started = _started(self.folder)
        if started is None:  # before the first step
            return
        ours, record = self._record.names, replace(self._record, started=started)
        here = files_of_run(self.folder)
        changed = {name: new for name, path in here.items() if (new := self._changed(name, path)) is not None}
        if changed.keys() - record.uploading:
            self._refuse_strange(changed.keys() - ours)
            record = self._record = self.store.write(replace(record, uploading=record.uploading | changed.keys()))
        files, gone = dict(record.files), set[int | None]()
        for name, new in changed.items():
            step = step_of_state(name)
            if step is not None and step in gone:
                continue
            if self._put(name, new.data, ours=name in ours):
                files[name] = new.about
            else:  # the run has removed the state: there are newer ones
                gone.add(step)
        steps = sorted({step for name in files if (step := step_of_state(name)) is not None} - gone, reverse=True)
        old = {name for name in files if step_of_state(name) in {*gone, *steps[self.limit :]} - {None}}
        files = {name: about for name, about in files.items() if name not in old}
        left = (record.uploading | old) - files.keys()
        if changed or left:
            self._record = self.store.write(replace(record, files=files, uploading=left))
            for name in sorted(left):
                self.store.remote.delete(name)
            self._record = replace(self._record, uploading=frozenset())
        self._sent |= {name: new.stamp for name, new in changed.items() if name in files}

    def _changed(self, name: str, path: Path) -> _New | None:
        """Return what to upload of a file; None if it is there already."""
        try:
            status = path.stat()
            stamp = status.st_size, status.st_mtime_ns
            if self._sent.get(name) == stamp:
                return None
            data = _whole_lines(path) if name in TEXTS else path
            about = described(data)
        except (FileNotFoundError, DsctlError):
            if path.exists():
                raise
            return None  # the run has removed the state meanwhile
        if self._record.files.get(name) == about and name not in self._record.uploading:
            self._sent[name] = stamp
            return None
        return _New(data, stamp, about)

    def _put(self, name: str, data: bytes | Path, *, ours: bool) -> bool:
        """Upload a file, over one that is `ours`; return False if it is not in the folder any more."""
        try:
            self.store.remote.put(name, data, if_absent=not ours)
        except RemoteExists as error:
            self._record = replace(self._record, uploading=self._record.uploading - {name})
            raise self._strange(name) from error
        except (RemoteMissing, FileNotFoundError):
            if isinstance(data, Path) and not data.exists():
                return False
            raise
        return True

    def _refuse_strange(self, names: Collection[str]) -> None:
        """Raise a DsctlError where one of the files that are to be new is there."""
        there = next((entry.name for entry in self.store.remote.list() if entry.name in names), None) if names else None
        if there is not None:
            raise self._strange(there)

    def _strange(self, name: str) -> DsctlError:
        return DsctlError(
            f"{self.address}/{name} is there already, and this run did not write it",
            hint="remove it, or give another --mirror",
        )


class _New(NamedTuple):
    """A file to upload: its path or its content, its size and time in the folder, and its entry in mirror.json."""

    data: bytes | Path
    stamp: tuple[int, int]
    about: StateFile


def _whole_lines(path: Path) -> bytes:
    """Return the content of a text; of one that grows, up to its last line break: what follows is being written."""
    content = path.read_bytes()
    return content if path.suffix == ".json" else content[: content.rfind(b"\n") + 1]


def _started(folder: Path) -> str | None:
    """Return when the run in `folder` was started; None if there is none."""
    try:
        started = read_json(folder / RUN_FILE).get("started")
    except DsctlError:
        return None
    return started if isinstance(started, str) else None


def _newest(folder: Path) -> int:
    """Return the step of the newest whole state in a folder; -1 if there is none."""
    return next((step for step, path in state_folders(folder) if fault_of(path, contents=False) is None), -1)
