"""Look at the files of a run for the live page: its samples, its use of the disk, and the ends of its logs."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsctl_core.files.regular import open_regular
from dsctl_core.media.clip_file import MEDIA_TYPES
from dsctl_core.report.runs import CHECKPOINT

SAMPLE_FILE = re.compile(r"step-(\d{1,18})-(\d{1,18})\.(png|gif|webp|mp4)")
SAMPLE_TYPES = {".png": "image/png", **MEDIA_TYPES}
TAIL_BYTES, TAIL_LINES = 16384, 40
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)")  # of a terminal, ECMA-48
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Sample:
    """A picture or clip that a run has drawn; `changed` is when it was written, in nanoseconds."""

    path: Path
    changed: int

    @property
    def media_type(self) -> str:
        """The type of its content, by its suffix alone."""
        return SAMPLE_TYPES[self.path.suffix]


def find_samples(folder: Path) -> dict[int, dict[int, Sample]]:
    """Return the samples in `folder` by number and step, in order; of a picture and a clip of one step, the clip.

    Only regular files count: no link leads out of the folder.
    """
    found: dict[int, dict[int, Sample]] = {}
    for entry in _entries(folder):
        match = SAMPLE_FILE.fullmatch(entry.name)
        if match and entry.is_file(follow_symlinks=False):
            step, number = int(match[1]), int(match[2])
            held = found.setdefault(number, {})
            if step not in held or match[3] != "png":
                held[step] = Sample(Path(entry.path), entry.stat(follow_symlinks=False).st_mtime_ns)
    return {number: dict(sorted(found[number].items())) for number in sorted(found)}


def disk_use(folder: Path) -> dict[str, int]:
    """Return the bytes of the files in a run by kind: weights, states, samples, cache, other. No link is followed."""
    kinds = dict.fromkeys(("weights", "states to resume from", "samples", "cache", "other"), 0)
    folders = {"state": "states to resume from", "samples": "samples", "cache": "cache"}
    for entry in _entries(folder):
        kind = "weights" if CHECKPOINT.fullmatch(entry.name) else folders.get(entry.name, "other")
        kinds[kind] += _size(entry)
    return {kind: size for kind, size in kinds.items() if size}


def log_tails(folder: Path, root: Path) -> dict[str, str]:
    """Return the ends of the logs of a run by name: those in its folder, and NAME.log beside it inside of `root`."""
    paths = [Path(entry.path) for entry in _entries(folder) if entry.name.endswith(".log")]
    if folder != root:
        paths.append(folder.with_name(f"{folder.name}.log"))
    tails = {os.fsencode(path.name).decode("utf-8", "replace"): _tail(path) for path in sorted(paths)}
    return {name: text for name, text in tails.items() if text}


def signature(paths: Sequence[Path]) -> tuple[object, ...]:
    """Return a value that changes when one of the files or folders `paths` is written, made or removed."""
    return tuple(_stamp(path) for path in paths)


def readable_log(data: bytes) -> str:
    """Return the last lines of a log as a terminal would show them: without escapes, rewritten lines once."""
    lines = data.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
    shown = [ESCAPES.sub("", line).rstrip("\r").rpartition("\r")[2] for line in lines[-TAIL_LINES - 1 :]]
    return "\n".join(CONTROLS.sub("", line) for line in shown).strip("\n")


def _tail(path: Path) -> str:
    try:
        if path.is_symlink():
            return ""
        with open_regular(path) as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(size - TAIL_BYTES, 0))
            data = stream.read(TAIL_BYTES)
    except OSError:
        return ""
    return readable_log(data.partition(b"\n")[2] if size > TAIL_BYTES else data)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder; nothing for a link, or where it cannot be read."""
    if folder.is_symlink():
        return []
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _size(entry: os.DirEntry[str]) -> int:
    try:
        if entry.is_dir(follow_symlinks=False):
            return sum(map(_size, _entries(Path(entry.path))))
        return entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else 0
    except OSError:  # removed meanwhile
        return 0


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
