"""Rehearse a save before the first step, so that it does not fail after hours of training."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import write_error
from dsctl_core.readable import readable_bytes

if TYPE_CHECKING:
    from dsctl_core.training.callbacks.base import TrainingRun
    from dsctl_core.training.state.snapshot import Snapshots

WHOLE = 256 * 2**20  # saves of up to this many bytes are rehearsed in full; of larger ones, PROBE bytes
PROBE = 16 * 2**20


def rehearse_save(run: TrainingRun, snapshots: Snapshots, saves: int) -> None:
    """Check that weights and state can be saved, by all processes together; leave nothing behind.

    Raises DsctlError for a full disk, a missing permission, weights that do not fit the format, or a state that cannot
    be stored. `saves` is the number of saves of the run; a note is shown if the disk has no room for all of them.
    """
    output = run.logger.output_path
    weights, state = weight_bytes(run), snapshots.bytes()
    if run.accelerator.is_main_process:
        require_space(output, weights + state)
        every = saves * weights + (snapshots.limit + 1) * state
        if every > free_bytes(output):
            run.progress.note(
                f"{output} has {readable_bytes(free_bytes(output))} free, "
                f"but all {saves} saves of this run take {readable_bytes(every)}"
            )
    in_full = snapshots.possible and weights + state <= WHOLE
    folder = output / f".rehearsal.{uuid.uuid4().hex[:8]}.tmp"
    try:
        if run.accelerator.is_main_process:
            folder.mkdir()
            if not in_full:
                _write_probe(folder / "probe")
        if in_full:
            snapshots.rehearse(folder)
            run.logger.rehearse(run.accelerator, run.model, folder)
    except OSError as error:
        raise write_error(output, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def weight_bytes(run: TrainingRun) -> int:
    """Return the size of the file of trained weights in bytes, at most."""
    return sum(parameter.numel() * parameter.element_size() for parameter in run.parameters)


def require_space(folder: Path, needed: int) -> None:
    """Raise a DsctlError if fewer than `needed` bytes are free for `folder`."""
    free = free_bytes(folder)
    if needed > free:
        raise DsctlError(
            f"a save of this run takes {readable_bytes(needed)}, but {folder} has {readable_bytes(free)} free",
            hint="free some disk space, or give an --output-path on another disk",
        )


def free_bytes(folder: Path) -> int:
    """Return the number of bytes that this user can still write in `folder`."""
    return shutil.disk_usage(folder).free


def _write_probe(path: Path) -> None:
    with path.open("wb") as stream:
        stream.write(bytes(PROBE))
        stream.flush()
        os.fsync(stream.fileno())
