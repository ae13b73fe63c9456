"""Write states to disk atomically, check them before use, and prune old ones."""

from __future__ import annotations

import re
import reprlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from dsctl_core.errors import DsctlError
from dsctl_core.files import lock
from dsctl_core.files.atomic import (
    atomic_folder,
    is_temporary,
    prepare_folder,
    remove_temporary,
    write_error,
    write_json,
)
from dsctl_core.files.digest import digest_files
from dsctl_core.files.json import checked, read_json
from dsctl_core.media.made_file import SAMPLES_FOLDER

STATE_FOLDER, MANIFEST_FILE, ABOUT_FILE, LOCK_FILE = "state", "manifest.json", "state.json", ".lock"
PIECES = "pieces"  # the folder in a state with the files that several processes have written
FORMAT = 1  # incremented when older states can no longer be read
LATEST, AUTO = "latest", "auto"
# Names of the files and folders that a run writes by way of temporary ones, beside those in its state folder
WRITTEN = r"step-\d+\..+|(?:run|trackers)\.json|(?:metrics|skipped)\.jsonl|metrics\.csv|rehearsal"
SAMPLE = r"step-\d+-\d+\D.*"  # of the samples in their folder, and of the layers of one
ELSEWHERE = "give another --output-path to start anew"


class StateFile(TypedDict):
    """The size and the SHA-256 of a file of a state."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: str


class StateManifest(TypedDict):
    """The manifest of a state, which names each of its files."""

    format: int
    files: Annotated[dict[str, StateFile], Field(min_length=1)]


class Settings(TypedDict):
    """What is computed with, of the settings on which the results of a run depend."""

    samples_per_step: Annotated[int, Field(ge=1)]


class About(TypedDict):
    """The state.json of a state: the progress of the run, and its settings."""

    step: Annotated[int, Field(ge=0)]
    epoch: Annotated[int, Field(ge=0)]
    step_in_epoch: Annotated[int, Field(ge=0)]
    settings: Settings


@contextmanager
def locked(output_path: Path) -> Iterator[None]:
    """Lock the run in `output_path` against other processes; the system releases the lock of a killed process.

    The lock belongs to this process alone, so a worker process that outlives it for a moment does not hold it.
    """
    prepare_folder(output_path / STATE_FOLDER)
    busy = DsctlError(f"another process is training in {output_path}", hint="wait until it has ended, or stop it")
    with lock.locked(output_path / STATE_FOLDER / LOCK_FILE, busy):
        try:
            yield
        finally:
            if not state_folders(output_path):  # the run ended before its first save
                clear_leftovers(output_path)
                (output_path / STATE_FOLDER / LOCK_FILE).unlink(missing_ok=True)
                with suppress(OSError):  # of what is not ours, nothing is removed
                    (output_path / STATE_FOLDER).rmdir()


@dataclass(frozen=True)
class SavedState:
    """A state on disk. `about` is its state.json: the step, the position in the data, and the identity of the run."""

    folder: Path
    about: dict[str, Any]

    @property
    def step(self) -> int:
        """The number of updates done."""
        return int(self.about["step"])

    @property
    def output_path(self) -> Path:
        """The output folder of the run that wrote the state."""
        return self.folder.absolute().parents[1]


@contextmanager
def new_state(output_path: Path, step: int, pieces: Mapping[str, StateFile] | None = None) -> Iterator[Path]:
    """Yield a temporary folder to write into; if the block succeeds, it becomes `output_path/state/step-N`.

    Until then it does not count as a state. The manifest, with the size and SHA-256 of every file, is written last.
    `pieces` are those of the files in its folder PIECES, by name, which the block may fill in.
    """
    states = output_path / STATE_FOLDER
    target = states / f"step-{step}"
    prepare_folder(states)
    # A state of this step that exists is not whole, or has the same content.
    with atomic_folder(target, remove=_remove) as temporary:
        yield temporary
        files = described(sorted(path for path in temporary.iterdir() if path.is_file()))
        files |= {f"{PIECES}/{name}": file for name, file in sorted((pieces or {}).items())}
        write_json(temporary / MANIFEST_FILE, {"format": FORMAT, "files": files})


def described(files: Sequence[Path]) -> dict[str, StateFile]:
    """Return what the manifest says of `files`, by name."""
    return {path.name: {"bytes": path.stat().st_size, "sha256": d} for path, d in digest_files(files).items()}


def state_folders(output_path: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of each state in `output_path`, complete or not, newest first."""
    found = []
    for path in (output_path / STATE_FOLDER).glob("step-*"):
        name = re.fullmatch(r"step-(\d+)", path.name)
        if name is not None and path.is_dir():
            found.append((int(name[1]), path))
    return sorted(found, reverse=True)


def fault_of(folder: Path, *, contents: bool = True) -> str | None:
    """Return a description of what is wrong with a state, or None; with `contents`, every byte is checked."""
    try:
        content = read_json(folder / MANIFEST_FILE)
        if content.get("format") != FORMAT:
            return f"it has the format {reprlib.repr(content.get('format'))}, not {FORMAT}"
        manifest = checked(content, StateManifest, str(folder / MANIFEST_FILE))
    except DsctlError as error:
        return error.problem
    files = manifest["files"]
    held = [(each.name, each) for each in folder.iterdir()]
    if (folder / PIECES).is_dir():
        held += [(f"{PIECES}/{each.name}", each) for each in (folder / PIECES).iterdir()]
    present = {name for name, path in held if path.suffix in (".json", ".safetensors")}
    for name in (ABOUT_FILE, *sorted(present - {MANIFEST_FILE})):
        if name not in files:
            return f"its {MANIFEST_FILE} does not name {name}"
    for name in files:
        if Path(name).name != name.removeprefix(f"{PIECES}/") or "\0" in name:
            return f"its {MANIFEST_FILE} names {name!r}, which is no file in it"
    told = {folder / name: each for name, each in files.items()}
    for path, each in told.items():
        if not path.is_file():
            return f"{path.name} is missing"
        if path.stat().st_size != each["bytes"]:
            return f"{path.name} has {path.stat().st_size} bytes, not {each['bytes']}"
    for path, digest in digest_files(told).items() if contents else ():
        if digest != told[path]["sha256"]:
            return f"{path.name} is not what was written"
    return None


def read_state(folder: Path) -> SavedState:
    """Return the state in `folder`; raise DsctlError for a state.json of another structure."""
    about = read_json(folder / ABOUT_FILE)
    checked(about, About, str(folder / ABOUT_FILE))
    return SavedState(folder, about)


def find_state(output_path: Path, resume: str | Path, note: Callable[[str], None] = lambda text: None) -> SavedState:
    """Return the state that `resume` names: "latest" (the newest complete one of `output_path`) or a folder.

    `note` is called with a message for each newer state that is incomplete. Raises a DsctlError for an older state of
    `output_path` than its newest, which would mix two histories in one folder. A state of another folder is allowed.
    """
    if str(resume) == LATEST:
        return _latest(output_path, note)
    folder = Path(resume)
    if not folder.is_dir():
        raise DsctlError(f"{folder} is no folder of a training state", hint=f"give {LATEST}, or OUT/state/step-N")
    fault = fault_of(folder)
    if fault is not None:
        raise DsctlError(
            f"{folder} cannot be resumed from: {fault}", hint=f"give {LATEST}, which takes the newest whole state"
        )
    state = read_state(folder)
    if state.output_path == output_path.absolute():
        newer = [path for step, path in state_folders(output_path) if step > state.step and fault_of(path) is None]
        if newer:
            raise DsctlError(
                f"{output_path} has a later state ({newer[0].name}), which going on from {folder.name} would mix with",
                hint="give another --output-path, and the run branches off there",
            )
    return state


def find_state_if_any(
    output_path: Path, resume: str | Path, note: Callable[[str], None] = lambda text: None
) -> SavedState | None:
    """Return the state that `resume` names, as `find_state` does; for "auto" the newest, or None if there is none."""
    if str(resume) != AUTO:
        return find_state(output_path, resume, note)
    return _latest(output_path, note) if state_folders(output_path) else None


def _latest(output_path: Path, note: Callable[[str], None]) -> SavedState:
    folders = state_folders(output_path)
    for _, folder in folders:
        fault = fault_of(folder)
        if fault is None:
            return read_state(folder)
        note(f"{folder} is not whole ({fault}): an earlier state is taken")
    if not output_path.is_dir():
        raise DsctlError(f"{output_path} does not exist: there is no run to resume", hint="leave --resume out")
    if folders:
        raise DsctlError(f"no state in {output_path} is whole, so none can be resumed from", hint=ELSEWHERE)
    raise DsctlError(
        f"{output_path} has no state to resume from",
        hint=f"a run is saved first after --save-steps steps or an epoch; {ELSEWHERE}",
    )


def prune_states(output_path: Path, limit: int) -> None:
    """Keep the `limit` newest complete states; remove older and incomplete ones."""
    whole = 0
    for _, folder in state_folders(output_path):
        if fault_of(folder, contents=False) is None:
            whole += 1
            if whole <= limit:
                continue
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a state so that an interrupted removal leaves nothing that counts as a state."""
    doomed = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        folder.replace(doomed)
    except OSError as error:
        raise write_error(folder, error) from error
    shutil.rmtree(doomed, ignore_errors=True)


def clear_leftovers(output_path: Path) -> None:
    """Remove the incomplete files of a killed run, which their names tell from other programs' temporary files."""
    of_run = [path for path in output_path.glob(".*.tmp") if is_temporary(path, WRITTEN)]
    of_state = [path for path in (output_path / STATE_FOLDER).glob(".*.tmp") if is_temporary(path, r"step-\d+")]
    samples = output_path / SAMPLES_FOLDER
    of_samples = [path for path in samples.glob(".*.tmp") if is_temporary(path, SAMPLE)]
    for path in [*of_run, *of_state, *of_samples]:
        remove_temporary(path)
