"""Which files of a dataset have no caption, and where the captions are written: beside them, or to a new table."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dsctl_core.commands.caption_journal import Journal
from dsctl_core.data import UnifiedDataset
from dsctl_core.data.caption_files import CaptionFiles
from dsctl_core.data.columns import Row
from dsctl_core.data.folder import Files, list_files
from dsctl_core.data.kinds import is_video
from dsctl_core.data.metadata import find_metadata, read_metadata
from dsctl_core.data.pairs import find_pair
from dsctl_core.data.problems import DataError
from dsctl_core.data.rows import BadCell, is_empty_cell
from dsctl_core.data.table_text import WRITERS, suffix_for
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files.atomic import prepare_folder, write_text
from dsctl_core.files.ownership import require_new
from dsctl_core.options.dataset import DatasetCaptionOptions
from dsctl_core.options.effects import NO_TABLE
from dsctl_core.readable import counted

PROMPT, PICTURE, VIDEO = "prompt", "image", "video"
NAME = "metadata_captioned"  # of the table that is written


@dataclass(frozen=True)
class Item:
    """A file without a caption: the number of its row, its path, its name in the dataset, and whether it is a clip."""

    number: int
    file: Path
    name: str
    clip: bool


class Captions(Protocol):
    """Where captions go: `todo` lacks one, and `kept` counts what has one."""

    todo: list[Item]
    kept: int

    @property
    def table(self) -> Path | None:
        """The table that is written; None if captions are beside their files."""

    @property
    def done(self) -> int:
        """How many of `todo` an earlier run had done, which are not in it any more."""

    def write(self, item: Item, caption: str) -> bool:
        """Keep a caption, so that it is not lost if the run stops; return false if one has come there meanwhile."""

    def finish(self) -> None:
        """Write what is written at the end."""


def open_captions(options: DatasetCaptionOptions) -> Captions:
    """Return where the captions of a dataset go: beside its files, or to a new table.

    Raises DsctlError for a dataset that cannot be read, and for an output that is there already.
    """
    base, table = options.path, options.metadata
    if base.is_file() and table is None:
        base, table = base.parent, base
    if not base.is_dir():
        problem = f"{base} is not a folder" if base.exists() else f"{base} does not exist"
        raise DsctlError(problem, hint="give the folder of the pictures or clips")
    table = table or find_metadata(base)
    files = None
    if table is None:
        NO_TABLE.refuse(options)
        files = _files(base)
        if options.output is None and not options.all:
            return Sidecars(base, files)
    return Table(options, base, table, files)


def _files(base: Path) -> Files:
    files = list_files(base)
    if not files.media:
        raise DsctlError(f"{base} has no pictures or clips", hint="give the folder of the pictures or clips")
    pair = find_pair(base, files)
    if pair is not None:
        raise DataError(
            f"{base} has pairs of pictures, in {pair[0]}/ and {pair[1]}/",
            hint=f"describe those that are to be made: `dsctl dataset caption {base / pair[0]}`",
        )
    return files


class Sidecars:
    """Writes the caption of `dog.png` to `dog.txt`; to `dog.png.txt` if there is another file of that name."""

    def __init__(self, base: Path, files: Files) -> None:
        captions = CaptionFiles(files.others)
        names = Counter(path.with_suffix("") for path in files.media)
        self.places: dict[Path, Path] = {}
        self.todo: list[Item] = []
        self.table: Path | None = None
        self.done = 0
        for number, path in enumerate(files.media):
            if captions.lacks(path):
                alone = names[path.with_suffix("")] == 1
                self.places[path] = path.with_suffix(".txt") if alone else path.with_name(f"{path.name}.txt")
                self.todo.append(Item(number, path, path.relative_to(base).as_posix(), is_video(path)))
        self.kept = len(files.media) - len(self.todo)
        for folder in dict.fromkeys(path.parent for path in self.places):
            prepare_folder(folder)

    def write(self, item: Item, caption: str) -> bool:
        """Write the file, unless somebody has written one since this run began."""
        place = self.places[item.file]
        if os.path.lexists(place):
            return False
        write_text(place, caption + "\n")
        return True

    def finish(self) -> None:
        """Do nothing: every caption is written."""


class Table:
    """Writes all rows of a dataset to a new table at the end, and until then keeps the new captions in a journal."""

    def __init__(self, options: DatasetCaptionOptions, base: Path, table: Path | None, files: Files | None) -> None:
        self.key = options.file_column or _column(base, table, files)
        uncaptioned = None if files is None else ""
        dataset = UnifiedDataset(base, table, data_file_keys=(self.key,), single_keys=(self.key,), caption=uncaptioned)
        if dataset.metadata.repeats is not None:
            raise DataError(
                f"the folders of {base} say how often their files are repeated, which no table does",
                hint="leave out --all and --output, which writes the captions beside the files",
            )
        numbers = dataset.rows_in_use
        self.rows = {number: dict(dataset.metadata.rows[number]) for number in numbers}
        if files is not None:
            self._read_captions(dataset, CaptionFiles(files.others))
        self.columns = dict.fromkeys((*dataset.metadata.columns, PROMPT))
        items = [self._item(n, dataset.files(n, self.key)[0]) for n in numbers]
        wanted = [item for item in items if options.all or is_empty_cell(self.rows[item.number].get(PROMPT))]
        self.kept = len(items) - len(wanted)
        self.table = options.output or base / f"{NAME}{suffix_for(list(self.rows.values()))}"
        self._require_fitting()
        require_new(self.table, "--output")
        prepare_folder(self.table.parent)
        self.journal = Journal(self.table, _settings(options))
        self.todo: list[Item] = []
        for item in wanted:
            earlier = self.journal.captions.get((item.number, item.name))
            if earlier is None:
                self.todo.append(item)
            else:
                self.rows[item.number][PROMPT] = earlier
        self.done = len(wanted) - len(self.todo)

    def _item(self, number: int, file: Path) -> Item:
        return Item(number, file, str(self.rows[number][self.key]), self.key == VIDEO or is_video(file))

    def _read_captions(self, dataset: UnifiedDataset, captions: CaptionFiles) -> None:
        for number, row in self.rows.items():
            (file,) = dataset.files(number, self.key)
            caption = None if captions.lacks(file) else captions.caption(file)
            if isinstance(caption, BadCell):
                raise caption.error
            row[PROMPT] = caption

    def _require_fitting(self) -> None:
        if self.table.suffix.lower() == ".csv" and suffix_for(list(self.rows.values())) != ".csv":
            raise UsageError(
                f"--output is {str(self.table)!r}, and a row has a list or an object, for which csv has no form",
                hint="give it a name that ends in .jsonl",
            )

    def write(self, item: Item, caption: str) -> bool:
        """Keep the caption for the table, and in the journal."""
        self.rows[item.number][PROMPT] = caption
        self.journal.add(item.number, item.name, caption)
        return True

    def finish(self) -> None:
        """Write the table, unless somebody has written one since this run began, and remove the journal."""
        require_new(self.table, "--output")
        write_text(self.table, WRITERS[self.table.suffix.lower()](list(self.columns), list(self.rows.values())))
        self.journal.remove()


def _column(base: Path, table: Path | None, files: Files | None) -> str:
    """Return the column of the files: of a table image, else video; of a folder what its files are."""
    if table is not None:
        columns = read_metadata(table).columns
        return VIDEO if VIDEO in columns and PICTURE not in columns else PICTURE
    assert files is not None
    clips = sum(map(is_video, files.media))
    if clips and clips < len(files.media):
        raise DataError(
            f"{base} has {counted(len(files.media) - clips, 'picture')} and {counted(clips, 'clip')}, "
            "for which a table has two columns",
            hint="put them into two folders, or leave out --all and --output, which writes captions beside the files",
        )
    return VIDEO if clips else PICTURE


def _settings(options: DatasetCaptionOptions) -> Row:
    """Return the options on which the captions depend."""
    return options.model_dump(mode="json", exclude={"path", "output", "batch_size", "device"})
