"""`dsctl dataset annotate`: write control pictures beside a dataset, and a table that has them as a column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.data import UnifiedDataset
from dsctl_core.data.control_pictures import KINDS, from_values
from dsctl_core.data.dataset import SINGLE_COLUMNS
from dsctl_core.data.folder import CONTROL_FOLDER
from dsctl_core.data.images import LoadImage
from dsctl_core.data.rows import BadCell
from dsctl_core.data.table_text import WRITERS, suffix_for
from dsctl_core.errors import DsctlError
from dsctl_core.files import lock
from dsctl_core.files.atomic import prepare_folder, remove_temporary, unclaim, write_text, written_as
from dsctl_core.files.digest import digest_file
from dsctl_core.files.ownership import Kind, require_no_link, require_replaceable
from dsctl_core.files.png import about_picture, write_png
from dsctl_core.options.control import IMAGE
from dsctl_core.options.dataset import POSE, DatasetAnnotateOptions
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.remote.archives import may_be_inside, split
from dsctl_core.version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURE = "image"  # the column of the pictures
LOCK_FILE = ".lock"
NOBODY = "nobody_found"  # an entry in the metadata of a pose
CONTROL = Kind("a control picture of `dsctl dataset annotate`", lambda path: "control" in about_picture(path))


@dataclass(frozen=True)
class AnnotateResult:
    """The new table, the folder of the control pictures, and how many were written and how many were there already.

    Of poses also how many of them all are black, as nobody was found.
    """

    table: Path
    folder: Path
    written: int
    kept: int
    nobody: int | None = None


def annotate(options: DatasetAnnotateOptions, progress: Progress | None = None) -> AnnotateResult:
    """Write a control picture for each picture of a dataset, and a table of the same rows with the column for them.

    Nothing that is there is changed: control pictures of the same kind that were made of the same pictures are kept, so
    that a command that was interrupted can be run again. Raises DsctlError for a dataset that cannot be read, and for
    other files in the places of these.
    """
    progress = progress or NoProgress()
    base, table = options.path, options.metadata
    if base.is_file() and table is None:
        base, table = base.parent, base
    dataset = UnifiedDataset(base, table, data_file_keys=(PICTURE,), single_keys=SINGLE_COLUMNS)
    if IMAGE in dataset.metadata.columns:
        raise DsctlError(f"{dataset.metadata.path} has the column {IMAGE} already", hint="give a table without it")
    _refuse_archives(dataset)
    folder = base / f"{CONTROL_FOLDER}{options.kind.replace('-', '_')}"
    names = control_names(dataset)
    text, suffix = table_text(dataset, {n: f"{folder.name}/{name}" for n, name in names.items()})
    made = base / f"metadata_{options.kind.replace('-', '_')}{suffix}"
    require_no_link(made, "dataset")
    if made.exists() and made.read_bytes() != text.encode():
        raise DsctlError(f"{made} is there already, with other rows", hint="move it, or remove it to have it anew")
    sources = {folder / names[number]: dataset.files(number, PICTURE)[0] for number in names}
    _refuse_links(base, [*sources, made])
    about = {path: _about(options, source) for path, source in sources.items()}
    pose = options.kind == POSE
    for path in sources:
        _is_there(path, about[path])
    with _locked(folder):
        _clear_leftovers({*sources, made})
        todo = [path for path in sources if not _is_there(path, about[path])]
        draw = drawing(options) if todo else None
        progress.start("Drawing control pictures", len(todo), unit="picture")
        for path in todo:
            assert draw is not None
            prepare_folder(path.parent)
            picture = draw(LoadImage()(sources[path]))
            write_png(path, picture, {**about[path], **({NOBODY: picture.getbbox() is None} if pose else {})})
            progress.advance()
        progress.finish()
        if not made.exists():
            write_text(made, text)
    nobody = sum(bool(about_picture(path).get(NOBODY)) for path in sources) if pose else None
    return AnnotateResult(made, folder, len(todo), len(sources) - len(todo), nobody)


def _refuse_archives(dataset: UnifiedDataset) -> None:
    """Raise a DsctlError for a dataset whose pictures are in archives: control pictures lie beside pictures."""
    for number in dataset.rows_in_use:
        path = dataset.files(number, PICTURE)[0]
        inner = split(str(path)) if may_be_inside(str(path)) else None
        if inner is not None and not Path(inner.archive).is_dir():
            raise DsctlError(
                f"{inner.archive} holds its pictures inside, and control pictures are drawn of files in a folder",
                hint="write its pictures to a folder, with a caption or a table beside them, and give that folder",
            )


def _refuse_links(base: Path, files: Iterable[Path]) -> None:
    """Raise a DsctlError where one of `files` would be written through a link below `base`, out of the dataset."""
    folders = {parent for file in files for parent in file.parents if parent.is_relative_to(base) and parent != base}
    for path in sorted(folders):
        if path.is_symlink():
            raise DsctlError(
                f"{path} is a link, and nothing is written outside of {base}",
                hint="put a folder in its place, or move it away",
            )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make the folder of the control pictures and lock it against other writers; if it stays empty, remove it."""
    made = [path for path in (folder,) if not path.exists()]
    prepare_folder(folder)
    try:
        busy = DsctlError(f"another command is writing to {folder}", hint="wait until it has ended, or stop it")
        with lock.locked(folder / LOCK_FILE, busy):
            yield
    finally:
        unclaim(made)


def _clear_leftovers(files: Collection[Path]) -> None:
    """Remove what a killed command has left of `files`; the caller holds the lock, so that none is being written."""
    for folder in {path.parent for path in files}:
        for path in folder.glob(".*.tmp"):
            name = written_as(path)
            if name is not None and folder / name in files:
                remove_temporary(path)


def control_names(dataset: UnifiedDataset) -> dict[int, str]:
    """Return the name of the control picture of each row: that of its picture, with the suffix .png.

    Where two pictures differ in the suffix alone, theirs stays in front of it.
    """
    cells = {n: str(dataset.files(n, PICTURE)[0].relative_to(dataset.base_path)) for n in dataset.rows_in_use}
    plain = Counter(str(Path(cell).with_suffix("")) for cell in dict.fromkeys(cells.values()))
    return {
        number: Path(cell if plain[str(Path(cell).with_suffix(""))] > 1 else Path(cell).with_suffix("")).as_posix()
        + ".png"
        for number, cell in cells.items()
    }


def table_text(dataset: UnifiedDataset, controls: dict[int, str]) -> tuple[str, str]:
    """Return the text of the new table and its suffix: a csv, or json lines where a cell is a list or an object.

    Raises DataError for a row with a cell that could not be read, such as one of a folder without a caption.
    """
    columns = [*dataset.metadata.columns, IMAGE]
    rows = [{**dataset.metadata.rows[number], IMAGE: control} for number, control in controls.items()]
    for cell in (cell for row in rows for cell in row.values()):
        if isinstance(cell, BadCell):
            raise cell.error
    suffix = suffix_for(rows)
    return WRITERS[suffix](columns, rows), suffix


def _about(options: DatasetAnnotateOptions, source: Path) -> dict[str, Any]:
    about: dict[str, Any] = {
        "control": options.kind,
        "source_sha256": digest_file(source),
        "dsctl_version": __version__,
    }
    if options.kind == POSE:
        about["detector"] = options.detector  # None too: a run without one is not one with any
    return about if options.annotator is None else {**about, "annotator": options.annotator}


def _is_there(path: Path, about: dict[str, Any]) -> bool:
    """Return whether the control picture is at `path`; raise DsctlError for anything else there."""
    require_replaceable(path, CONTROL, "dataset")
    if not path.exists():
        return False
    found = about_picture(path)
    if any(found.get(name) != value for name, value in about.items() if name != "dsctl_version"):
        raise DsctlError(
            f"{path} is there already, and was made of another picture, or by another model",
            hint="remove it to have it anew",
        )
    return True


def drawing(options: DatasetAnnotateOptions) -> Callable[[Image], Image]:
    """Return the function that draws a control picture of a picture; for depth and poses it loads the models."""
    if options.annotator is None:
        return KINDS[options.kind]
    if options.kind == POSE:
        from dsctl_core.commands.annotate_pose import pose_drawing

        return pose_drawing(options)
    from dsctl_core.checkpoint.processors import load_vision_model
    from dsctl_core.commands.caption_model import hub_folder

    folder = hub_folder(options.annotator, "--annotator")
    import torch
    from transformers import AutoModelForDepthEstimation
    from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES as KNOWN

    model, processor = load_vision_model(
        folder, AutoModelForDepthEstimation, KNOWN, "depth estimation model", "depth-estimation"
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)

    def depth(picture: Image) -> Image:
        size = (picture.height, picture.width)
        with torch.no_grad():
            outputs = model(**processor(images=picture, return_tensors="pt").to(device))
        made = processor.post_process_depth_estimation(outputs, target_sizes=[size])[0]["predicted_depth"]
        return from_values(made.float().cpu().numpy())

    return depth
