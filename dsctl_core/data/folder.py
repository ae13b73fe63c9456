"""Read a plain folder of images or videos with a caption file for each: `dog.png` and `dog.txt`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from dsctl_core.data.problems import DataError, explained_os_errors
from dsctl_core.data.rows import BadCell, Metadata, Row

IMAGE_SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
MEDIA_SUFFIXES = IMAGE_SUFFIXES + VIDEO_SUFFIXES


def read_folder(base_path: Path, key: str) -> Metadata | None:
    """Return a row `{key: file, "prompt": caption}` for each media file below `base_path`, sorted by name.

    Return None if no file has a caption. If only some have one, the prompt of the others is a `BadCell`.
    """
    files = [path for path in walk(base_path) if path.suffix.lower() in MEDIA_SUFFIXES]
    captions = [path.with_suffix(".txt") for path in files]
    present = sum(caption.is_file() for caption in captions)
    if not present:
        return None
    names = tuple(path.relative_to(base_path).as_posix() for path in files)
    rows: list[Row] = [{key: name, "prompt": _caption(caption)} for name, caption in zip(names, captions, strict=True)]
    layout = f"folder of {len(files)} files with captions in .txt beside them"
    return Metadata(base_path, (key, "prompt"), tuple(rows), None, layout, names)


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files below `folder`, sorted by name. Links to folders are followed, hidden files left out."""
    yield from _walk(folder, (_identity(folder),))


def _walk(folder: Path, parents: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    with explained_os_errors(folder):
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield path
            continue
        if (identity := _identity(path)) in parents:
            raise DataError(
                f"{path} is a link to a folder that contains it",
                hint="remove the link",
                kind="path",
            )
        yield from _walk(path, (*parents, identity))


def _identity(folder: Path) -> tuple[int, int]:
    with explained_os_errors(folder):
        status = folder.stat()
    return status.st_dev, status.st_ino


def _caption(path: Path) -> str | BadCell:
    try:
        with explained_os_errors(path):
            text = path.read_bytes().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        problem = f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start + 1}"
        return BadCell(DataError(problem, hint="save it as UTF-8", kind="caption"))
    except DataError as error:
        hint = "write the caption to this file, or remove the image or video of the same name"
        return BadCell(DataError(error.problem, hint=hint, kind="caption"))
    if not text:
        return BadCell(DataError(f"{path} is empty", hint="write the caption to this file", kind="caption"))
    return text
