"""Remember which weight files were found to be usable, so that they are not looked through again at every start.

On a CPU that look takes a fifth of the time of reading the files from memory. A file counts as unchanged while its
path, size, times of change (of content and of status) and inode are; one that was just changed is not remembered.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from dsctl_core.files.digest import digest
from dsctl_core.files.safetensors import settled_state
from dsctl_core.files.user_cache import user_cache
from dsctl_core.version import __version__

FOLDER = "weights"  # in the user's cache folder: an empty file for each set of files, named by a hash
MOST = 1000  # of them; those that were not asked for longest go first


def marker_of(files: Sequence[Path], model: str, dtypes: Iterable[str]) -> Path | None:
    """Return the file whose presence says that `files`, loaded as `model` in `dtypes`, were found to be usable.

    None if that cannot be remembered: there are no files, one of them has just been changed, or the user has no home.
    """
    folder = user_cache()
    if folder is None or not files:
        return None
    states = []
    for file in files:
        state = settled_state(file.stat())
        if state is None:
            return None
        states.append([str(file.resolve()), *state])
    return folder / FOLDER / digest([__version__, model, sorted(set(dtypes)), sorted(states)])


def is_known(marker: Path | None) -> bool:
    """Return whether what `marker` stands for was found to be usable."""
    if marker is None:
        return False
    with suppress(OSError):
        os.utime(marker)  # so that it is not among the oldest
        return True
    return False


def remember(marker: Path | None) -> None:
    """Keep in mind that what `marker` stands for was found to be usable; do nothing where nothing can be written."""
    if marker is None:
        return
    with suppress(OSError):
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        markers = sorted(marker.parent.iterdir(), key=lambda each: each.stat().st_mtime)
        for old in markers[:-MOST]:
            old.unlink()
