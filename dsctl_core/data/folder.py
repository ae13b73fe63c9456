"""Read a plain folder of pictures or videos with a caption file for each: `dog.png` and `dog.txt`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dsctl_core.data.caption_files import JSON_SUFFIX, TEXT_SUFFIXES, CaptionFiles
from dsctl_core.data.columns import Column, Rows
from dsctl_core.data.kinds import media_of, media_suffixes
from dsctl_core.data.problems import DataError, explained_os_errors
from dsctl_core.data.rows import LeftOut, Metadata
from dsctl_core.files.png import about_picture
from dsctl_core.readable import counted
from dsctl_core.remote import anywhere
from dsctl_core.remote.address import is_remote

# Suffixes of files that often lie beside pictures. Files of other unknown suffixes, or of none, are looked into.
OTHER_SUFFIXES = frozenset(
    (
        *(".ai", ".bin", ".ckpt", ".csv", ".db", ".emf", ".eps", ".gz", ".html", ".ini", ".jsonl", ".log", ".md"),
        *(".npy", ".npz", ".parquet", ".pdf", ".pt", ".pth", ".ps", ".py", ".safetensors", ".sh", ".tar", ".toml"),
        *(".tsv", ".wmf", ".xml", ".yaml", ".yml", ".zip", JSON_SUFFIX, *TEXT_SUFFIXES),
    )
)
SIGNATURE_BYTES = 32
CONTROL_FOLDER = "control_"  # begins the names of the folders in which `dsctl dataset annotate` writes
# A folder such as `10_sks dog`, of which kohya's trainers show each picture 10 times, with "sks dog" as the caption of
# pictures without a file of their own. Longer numbers are years or dates.
REPEATED = re.compile(r"(\d{1,3})_(.*)", re.DOTALL)


@dataclass(frozen=True)
class Files:
    """The files below a folder: those that are pictures or videos, by suffix or signature, and all others.

    `controls` are those of the others that `dsctl dataset annotate` drew from the pictures.
    """

    media: tuple[Path, ...]
    others: tuple[Path, ...]
    controls: frozenset[Path] = frozenset()

    def left_out(self, base_path: Path, captions: CaptionFiles, unused: Iterable[Path] = ()) -> LeftOut:
        """Return what is no part of the dataset, once the captions of all of its pictures have been read."""
        texts = set(captions.unused_texts())
        rest = [path for path in (*self.others, *unused) if path not in captions.used and path not in texts]
        counts = Counter(
            "control pictures" if path in self.controls else path.suffix.lower() or "without a suffix" for path in rest
        )
        return LeftOut(
            tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
            tuple(path.relative_to(base_path).as_posix() for path in sorted(texts)),
        )


def list_files(base_path: Path) -> Files:
    """List a folder. Only files whose suffix says nothing are opened, and those that may be control pictures."""
    media: list[Path] = []
    others: list[Path] = []
    controls: set[Path] = set()
    # `dsctl dataset annotate` draws on a local disk alone, into folders of these names.
    drawn = None if is_remote(base_path) else str(base_path / CONTROL_FOLDER)
    for path in walk(base_path):
        if drawn is not None and str(path).startswith(drawn) and "control" in about_picture(path):
            controls.add(path)
            others.append(path)
        else:
            (media if _is_media(path) else others).append(path)
    return Files(tuple(media), tuple(others), frozenset(controls))


def _is_media(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in media_suffixes() or suffix in OTHER_SUFFIXES:
        return suffix in media_suffixes()
    try:
        if not anywhere.is_file(path):  # a pipe would wait for a writer
            return False
        with anywhere.opened(path) as file:
            return media_of(file.read(SIGNATURE_BYTES)) is not None
    except OSError:
        return False


def read_folder(base_path: Path, key: str, files: Files, *, uncaptioned: bool = False) -> Metadata | None:
    """Return a row `{key: file, "prompt": caption}` for each picture or video in a folder, sorted by name.

    Return None if there is no file, or none has a caption, unless `uncaptioned`. If only some have one, the prompt of
    the others is a `BadCell`. Folders named as kohya's trainers read them, such as `10_sks dog`, repeat their rows.
    """
    captions = CaptionFiles(files.others)
    folders = repeated_folders(base_path, files.media)
    texts_and_objects = [captions.of(path) for path in files.media]
    captioned = any(texts or objects for texts, objects in texts_and_objects)
    if folders is None and not captioned and not (uncaptioned and files.media):
        return None
    names = Column(path.relative_to(base_path).as_posix() for path in files.media)
    words = [None if folders is None else folders[path.parent.name][1] or None for path in files.media]
    prompts = Column(captions.caption(path, default) for path, default in zip(files.media, words, strict=True))
    layout, repeats = f"folder of {counted(len(names), 'file')}", None
    if captioned:
        layout += f" with captions in {_endings(texts_and_objects)} beside them"
    if folders is not None:
        repeats = tuple(folders[path.parent.name][0] for path in files.media)
        shown = ", ".join(f"{name!r} {counted(count, 'time')}" for name, (count, _) in sorted(folders.items()))
        layout = f"folder of {counted(len(names), 'file')}, repeated by the names of their folders: {shown}"
    elif numbered := sorted({path.parent.name for path in files.media if REPEATED.fullmatch(path.parent.name)}):
        layout += f" (the number of {numbered[0]!r} is no repeat, as not all files lie in such folders)"
    left_out = files.left_out(base_path, captions)
    rows = Rows({key: names, "prompt": prompts}, len(names))
    return Metadata(base_path, (key, "prompt"), rows, None, layout, names, repeats, left_out)


def _endings(texts_and_objects: list[tuple[list[Path], list[Path]]]) -> str:
    """Return the suffixes of the captions that are used: ".txt", or ".caption and .txt"."""
    suffixes = {path.suffix.lower() for texts, objects in texts_and_objects for path in texts or objects}
    return " and ".join(sorted(suffixes))


def repeated_folders(base_path: Path, media: Iterable[Path]) -> dict[str, tuple[int, str]] | None:
    """Return {name: (repeats, words)} of the folders of kohya's layout; None for any other layout.

    In that layout every picture lies in a folder `REPEATS_WORDS` of `base_path`, with at least 1 as the number.
    """
    found: dict[str, tuple[int, str]] = {}
    for path in media:
        match = REPEATED.fullmatch(path.parent.name)
        if path.parent.parent != base_path or match is None or int(match[1]) < 1:
            return None
        found[path.parent.name] = (int(match[1]), match[2].strip())
    return found or None


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files below `folder`, sorted by name. Links to folders are followed, hidden files left out."""
    yield from _walk(folder, () if is_remote(folder) else (_identity(folder),))


def _walk(folder: Path, parents: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    with explained_os_errors(folder):
        entries = anywhere.inside(folder)
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if not entry.is_folder:
            yield path
            continue
        if is_remote(path):  # which has no links
            yield from _walk(path, parents)
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
