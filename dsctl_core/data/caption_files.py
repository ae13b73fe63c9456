"""Find and read the caption files beside pictures: `a.txt`, `a.caption`, `a.png.txt` or `a.json` for `a.png`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dsctl_core.data.problems import DataError, explained_os_errors
from dsctl_core.data.rows import BadCell, blank, kind_of
from dsctl_core.files.json import decode_json
from dsctl_core.remote import anywhere

TEXT_SUFFIXES = (".caption", ".txt")
JSON_SUFFIX = ".json"
JSON_KEYS = ("caption", "prompt", "text")  # of the caption in a json file, as in the tables of an ImageFolder
AS_JSON = 'write it as {"caption": "..."}'


class CaptionFiles:
    """The caption files among the files of a folder, by the name that they have in common with a picture.

    `used` has the files that belong to a picture that was asked for.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.texts: dict[Path, list[Path]] = {}
        self.objects: dict[Path, list[Path]] = {}
        self.used: set[Path] = set()
        for path in files:
            suffix = path.suffix.lower()
            if suffix in TEXT_SUFFIXES:
                self.texts.setdefault(path.with_suffix(""), []).append(path)
            elif suffix == JSON_SUFFIX:
                self.objects.setdefault(path.with_suffix(""), []).append(path)

    def of(self, picture: Path) -> tuple[list[Path], list[Path]]:
        """Return the text files and the json files that have the name of `picture`, with its suffix or without."""
        names = dict.fromkeys((picture.with_suffix(""), picture))
        texts = [path for name in names for path in self.texts.get(name, ())]
        objects = [path for name in names for path in self.objects.get(name, ())]
        self.used.update(texts, objects)
        return texts, objects

    def unused_texts(self) -> list[Path]:
        """Return the text files that belong to no picture."""
        return [path for paths in self.texts.values() for path in paths if path not in self.used]

    def lacks(self, picture: Path) -> bool:
        """Return whether no file has a caption of `picture`: there is no text file, and no json file with one."""
        texts, objects = self.of(picture)
        return not texts and not any(_has_caption(path) for path in objects)

    def caption(self, picture: Path, default: str | None = None) -> Any:
        """Return the caption of `picture`, or a list of them, or a `BadCell` if there is none that can be read.

        `default` is the caption of a picture without a file. A json file beside a text file may have anything in it,
        except another caption.
        """
        texts, objects = self.of(picture)
        if not texts and not objects:
            return _missing(picture) if default is None else default
        try:
            if len(texts) > 1 or (not texts and len(objects) > 1):
                raise _two_files(picture, texts or objects)
            if not texts:
                return _from_json(objects[0])
            text = _from_text(texts[0])
            for path in objects:
                if _other_caption(path, text):
                    raise _two_files(picture, [texts[0], path])
            return text
        except DataError as error:
            return BadCell(error)


def _missing(picture: Path) -> BadCell:
    return BadCell(
        DataError(
            f"{picture.with_suffix('.txt')} does not exist",
            hint="write the caption to this file, or remove the picture or video of the same name",
            kind="caption",
        )
    )


def _two_files(picture: Path, paths: Sequence[Path]) -> DataError:
    return two_captions(str(picture), [path.name for path in paths])


def two_captions(picture: str, names: Sequence[str]) -> DataError:
    """Return the error for a picture with captions in several files."""
    text = f"{picture} has two captions: {' and '.join(sorted(names))}"
    return DataError(text, hint="remove one of the two files", kind="caption")


def several_keys(path: str, keys: Sequence[str]) -> DataError:
    """Return the error for a json file with captions in several keys."""
    text = f"{path} has captions in {' and '.join(map(repr, keys))}"
    return DataError(text, hint="keep one of them", kind="caption")


def _from_text(path: Path) -> str:
    text = _read(path).strip()
    if blank(text):
        raise DataError(f"{path} is empty", hint="write the caption to this file", kind="caption")
    return text


def _from_json(path: Path) -> Any:
    """Return the caption in a json file: a text, or a list of texts of which one is chosen each time."""
    found = _captions_in(path)
    if len({json.dumps(value) for value in found.values()}) > 1:
        raise several_keys(str(path), list(found))
    if found:
        return next(iter(found.values()))
    raise DataError(f"{path} has none of the keys {', '.join(JSON_KEYS)}", hint=AS_JSON, kind="caption")


def _other_caption(path: Path, text: str) -> bool:
    """Return whether the json file `path` has a caption that is not `text`."""
    try:
        captions = _captions_in(path).values()
    except DataError:
        return False  # no caption, so it is about something else
    return bool(captions) and text not in [each.strip() for each in captions if isinstance(each, str)]


def _has_caption(path: Path) -> bool:
    try:
        return bool(_captions_in(path))
    except DataError:
        return False  # no caption, so it is about something else


def _captions_in(path: Path) -> dict[str, Any]:
    """Return the captions of a json file by key; raise `DataError` if it is not an object of json."""
    try:
        value = decode_json(_read(path), finite=False)  # other keys of the file are of no concern here
    except ValueError as error:
        raise DataError(f"{path} cannot be read as json: {error}", hint=AS_JSON, kind="caption") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} is {kind_of(value)}, not an object", hint=AS_JSON, kind="caption")
    return {key: value[key] for key in JSON_KEYS if key in value}


def _read(path: Path) -> str:
    try:
        with explained_os_errors(path), anywhere.opened(path) as file:
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        data = error.object
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(f"{path} is UTF-16, not UTF-8", hint="save it as UTF-8", kind="caption") from error
        problem = f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at position {error.start + 1}"
        raise DataError(problem, hint="save it as UTF-8", kind="caption") from error
    except DataError as error:
        hint = "write the caption to this file, or remove the picture or video of the same name"
        raise DataError(error.problem, hint=hint, kind="caption") from error
