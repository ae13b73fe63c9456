"""Read the runs that are served, each again only when its files have changed."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsctl_core.errors import DsctlError
from dsctl_core.report.live.files import Sample, disk_use, find_samples, log_tails, signature
from dsctl_core.report.live.find import Found, find_runs
from dsctl_core.report.runs import RunRecord, read_run

FRESH = 0.5  # seconds for which what was read is not read again
DISK_EVERY = 10.0  # seconds between two looks at the disk use of a run that is going on
LOCK = Path("state", ".lock")  # there while a process trains; a process that was killed leaves it


@dataclass(frozen=True)
class LiveRun:
    """A run as it is now.

    `record` is None where `fault` says why it cannot be read. `changed` is when its metrics were last written, in
    seconds since 1970. `locked` tells that a process trains in it, or was killed while it did.
    """

    found: Found
    record: RunRecord | None
    fault: str
    changed: float
    locked: bool
    samples: dict[int, dict[int, Sample]]
    disk: dict[str, int]
    logs: dict[str, str]

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong with the files of the run: why it cannot be read, or what of it could not be used."""
        return (self.fault,) if self.record is None else self.record.faults

    @property
    def total(self) -> int | None:
        """The number of steps that the run will take, if its options tell it."""
        total = self.record.options.get("max_steps") if self.record else None
        return total if isinstance(total, int) and total > 0 else None

    @property
    def state(self) -> str:
        """One word for how it stands; it has "ended" where its options do not tell how many steps it was to take."""
        if self.record is None:
            return "unreadable"
        if self.locked:
            return "training"
        if not self.record.last_step:
            return "preparing"
        if self.total is None:
            return "ended"
        return "finished" if self.record.last_step >= self.total else "stopped"


@dataclass(frozen=True)
class _Kept:
    """What was read of a run whose files were as `seen`; its disk use was `measured` (seconds) as `seen_on_disk`."""

    run: LiveRun
    seen: tuple[object, ...]
    measured: float
    seen_on_disk: tuple[object, ...]


class Watched:
    """The runs in `roots`. It can be read from several threads; only one reads the disk at a time."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = list(roots)
        self._kept: dict[str, _Kept] = {}
        self._runs: list[LiveRun] = []
        self._read_at = -math.inf
        self._lock = threading.Lock()

    def runs(self) -> list[LiveRun]:
        """Return all runs as they are now: those in training first, and of them those that were written last."""
        with self._lock:
            if time.monotonic() - self._read_at > FRESH:
                kept = {found.key: self._look(found) for found in find_runs(self.roots)}
                self._kept, self._read_at = kept, time.monotonic()
                self._runs = sorted(
                    (each.run for each in kept.values()), key=lambda run: (not run.locked, -run.changed)
                )
            return self._runs

    def sample(self, key: str, number: int, step: int) -> Sample | None:
        """Return a sample of the run called `key`, if it was there when the runs were last read."""
        for run in self.runs():
            if run.found.key == key:
                return run.samples.get(number, {}).get(step)
        return None

    def _look(self, found: Found) -> _Kept:
        folder, kept, now = found.folder, self._kept.get(found.key), time.monotonic()
        names = ("", "run.json", "metrics.jsonl", "skipped.jsonl", "samples", "state", str(LOCK))
        seen = signature([folder / name for name in names])  # before reading, so that what changes meanwhile is seen
        logs, locked = log_tails(folder, found.root), (folder / LOCK).is_file()
        if kept is None or kept.seen != seen:
            (record, fault), samples = _read(folder), find_samples(folder / "samples")
        else:
            record, fault, samples = kept.run.record, kept.run.fault, kept.run.samples
        if kept is None or (now - kept.measured > DISK_EVERY and (locked or kept.seen_on_disk != seen)):
            disk, measured, seen_on_disk = disk_use(folder), now, seen
        else:
            disk, measured, seen_on_disk = kept.run.disk, kept.measured, kept.seen_on_disk
        run = LiveRun(found, record, fault, _changed(folder), locked, samples, disk, logs)
        return _Kept(run, seen, measured, seen_on_disk)


def _read(folder: Path) -> tuple[RunRecord | None, str]:
    try:
        return read_run(folder), ""
    except DsctlError as error:
        return None, error.problem
    except OSError as error:
        return None, f"{folder} cannot be read: {error.strerror}"


def _changed(folder: Path) -> float:
    for path in (folder / "metrics.jsonl", folder / "run.json", folder):
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return 0.0
