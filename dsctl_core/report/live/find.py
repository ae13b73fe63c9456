"""Find the output folders of runs below the folders that are served."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsctl_core.errors import DsctlError

DEPTH = 3  # folders below a served one in which runs are looked for
MARKS = ("run.json", "metrics.jsonl")  # a folder with one of these files belongs to a run


@dataclass(frozen=True)
class Found:
    """The output folder of a run. `key` names it in addresses, `name` on the page, `root` is the folder served."""

    folder: Path
    root: Path

    @property
    def key(self) -> str:
        """A name of letters and digits that follows from the path, so that no path is ever part of an address."""
        return hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]

    @property
    def name(self) -> str:
        """The path below the served folder, or the name of the served folder if it is the run; always valid UTF-8."""
        inside = self.folder.relative_to(self.root)
        text = self.folder.name if inside == Path() else str(inside)
        return os.fsencode(text).decode("utf-8", "replace")


def require_folders(folders: Sequence[Path]) -> list[Path]:
    """Return the absolute paths of `folders`; raise DsctlError for one that is not there or is no folder."""
    for folder in folders:
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            raise DsctlError(f"{folder} {what}", hint="give the --output-path of a run, or a folder of runs")
    return [folder.resolve() for folder in folders]


def find_runs(roots: Sequence[Path]) -> list[Found]:
    """Return the runs in `roots` and up to DEPTH folders below, each once; links and hidden folders are passed over."""
    found: dict[Path, Found] = {}
    for root in roots:
        for folder in _runs_below(root, DEPTH):
            found.setdefault(folder, Found(folder, root))
    return list(found.values())


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    if any((folder / mark).is_file() for mark in MARKS):
        yield folder
        return
    try:
        with os.scandir(folder) as entries:
            inside = sorted(
                entry.path for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name[0] != "."
            )
    except OSError:  # removed meanwhile, or not readable
        return
    for path in inside if depth else ():
        yield from _runs_below(Path(path), depth - 1)
