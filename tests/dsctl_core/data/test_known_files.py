"""Files of a dataset are opened once in a start, and not at all where they are remembered and unchanged."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dsctl_core.commands.dataset import validate
from dsctl_core.data import UnifiedDataset
from dsctl_core.data.file_store import store_path
from dsctl_core.data.identity import identity_of_dataset
from dsctl_core.data.known_files import CHUNK, FINE, KnownFiles, pack_times, state_of, unpack_times
from dsctl_core.errors import DsctlError
from dsctl_core.files.digest import digest_file, digest_samples
from dsctl_core.options import DatasetValidateOptions, TrainOptions
from dsctl_core.progress import NoProgress
from dsctl_core.stages.plan_rows import plan_rows
from dsctl_core.training.output.metadata import header_metadata
from dsctl_core.training.plan.plan import TrainingPlan, plan_training
from dsctl_core.training.plan.source import DatasetError
from tests.dsctl_core.data.test_clips import write_grouped
from tests.dsctl_core.data.test_video import write

PICTURES = 6
_counted: list[Counter[str]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _counted and isinstance(arguments[0], str | os.PathLike):
        _counted[-1][Path(os.fspath(arguments[0])).name] += 1


sys.addaudithook(_hook)


@contextmanager
def opened(folder: Path) -> Iterator[dict[str, int]]:
    """Count how often each file of `folder` is opened, by name."""
    found: dict[str, int] = {}
    _counted.append(Counter())
    try:
        yield found
    finally:
        counts = _counted.pop()
        found.update({path.name: counts[path.name] for path in folder.iterdir() if counts[path.name]})


class Notes(NoProgress):
    """Keeps the notes of a command."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A dataset whose files were written long enough ago to be remembered."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = ["image,prompt"]
    for number in range(PICTURES):
        Image.effect_noise((32 + 16 * (number % 2), 32), 20 + number).convert("RGB").save(folder / f"p{number}.png")
        lines.append(f"p{number}.png,ball {number}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    time.sleep(2 * FINE)
    return folder


def start(folder: Path, **changes: Any) -> TrainingPlan:
    """Do what a training does before it loads weights, with a cache of its own, in buckets."""
    values = {"model": "tiny", "lora_rank": 2, "max_steps": 9, "output_path": folder.parent / "out", "device": "cpu"}
    options = TrainOptions(dataset_base_path=folder, **{"batch_size": 2, **values, **changes})
    plan = plan_training(options, Notes())
    try:
        header_metadata(options.adapter, plan.model, plan.source)
        if plan.encoding is not None:
            encoding = plan.encoding
            plan_rows(encoding.dataset, encoding.shell, encoding.stages, encoding.recipe(), NoProgress())
        plan.source.buckets()  # type: ignore[call-arg]
    finally:
        plan.accelerator.end_training()
    return plan


def test_a_start_opens_each_picture_once_and_the_next_start_opens_none(pictures: Path, monkeypatch):
    with opened(pictures) as first:
        plan = start(pictures)
    assert plan.encoding is not None
    names = {f"p{number}.png" for number in range(PICTURES)}
    assert {name: count for name, count in first.items() if name in names} == dict.fromkeys(names, 1)
    stats: Counter[str] = Counter()
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *a, **k: (stats.update([Path(path).name]), real(path, *a, **k))[1])
    with opened(pictures) as second:
        again = start(pictures)
    assert set(second) == {"metadata.csv"}
    assert {name: count for name, count in stats.items() if name in names} == dict.fromkeys(names, 1)
    assert again.identity == plan.identity
    assert again.source.buckets() == plan.source.buckets()  # type: ignore[call-arg]


@pytest.mark.parametrize("extraction", ["head", "every"])
def test_a_start_opens_no_clip_that_an_earlier_one_has_seen(tmp_path: Path, extraction: str):
    folder = tmp_path / "clips"
    folder.mkdir()
    write_grouped(folder / "a.mp4")
    write(folder / "b.gif", 11)
    Image.new("RGB", (64, 48)).save(folder / "c.png")
    names = ["a.mp4", "b.gif", *(["c.png"] if extraction == "head" else [])]
    (folder / "metadata.csv").write_text("video,prompt\n" + "".join(f"{name},a ball\n" for name in names))
    (folder / "pictures.csv").write_text("image,prompt\nb.gif,a ball\n")
    time.sleep(2 * FINE)
    clips = {"model": "tiny-video", "num_frames": 5, "clip_extraction": extraction, "batch_size": 1}
    clips |= {
        "data_file_keys": ("video",),
        "short_clips": "shorten",
        "dataset_metadata_path": str(folder / "metadata.csv"),
    }
    with opened(folder) as files:
        plan = start(folder, **clips)
    assert set(files) == {"metadata.csv", *names}
    with opened(folder) as files:
        again = start(folder, **clips)
    assert set(files) == {"metadata.csv"}
    assert again.identity == plan.identity
    assert again.source.buckets() == plan.source.buckets()  # type: ignore[call-arg]
    with opened(folder) as files:
        start(folder, dataset_metadata_path=folder / "pictures.csv")
    assert files["b.gif"], "as a picture it is another thing"
    with pytest.raises(DatasetError, match=r"a.mp4 is a video"):
        (folder / "pictures.csv").write_text("image,prompt\na.mp4,a ball\n")
        start(folder, dataset_metadata_path=folder / "pictures.csv")
    (folder / "a.mp4").write_bytes((folder / "a.mp4").read_bytes()[:-200])
    with pytest.raises(DsctlError, match=r"a.mp4"):
        start(folder, **clips)


@pytest.mark.parametrize("times", [[], [0.0], [k / 30 for k in range(300)], [0.0, 0.04, 1e-9, 7.25, 1e9, -3.5]])
def test_the_times_of_a_clip_are_kept_to_the_bit(times: list[float]):
    packed = pack_times(array("d", times), 0.1 + 0.2)
    assert unpack_times(packed) == (array("d", times), 0.1 + 0.2)
    assert len(packed) < 1000


def test_a_validation_serves_the_start_and_the_next_validation(pictures: Path):
    found = validate(DatasetValidateOptions(path=pictures, model="tiny"))
    with opened(pictures) as files:
        again = validate(DatasetValidateOptions(path=pictures, model="tiny"))
        start(pictures)
    assert set(files) == {"metadata.csv"}
    assert (again.summary, again.found) == (found.summary, found.found)
    with opened(pictures) as files:
        validate(DatasetValidateOptions(path=pictures, model="tiny", recheck=True))
    assert len(files) == PICTURES + 1


def test_a_rewritten_file_of_the_same_size_and_time_is_noticed(pictures: Path):
    start(pictures)
    path = pictures / "p1.png"
    before = path.stat()
    data = path.read_bytes()
    path.write_bytes(data[:40] + bytes(len(data) - 40))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(DatasetError, match="p1.png"):
        start(pictures)


def test_what_was_changed_a_moment_ago_is_read_again(pictures: Path):
    soon = time.time() + 60
    os.utime(pictures / "p2.png", (soon, soon))
    start(pictures)
    with opened(pictures) as files:
        start(pictures)
    assert set(files) == {"metadata.csv", "p2.png"}


def test_recheck_reads_everything_and_remembers_it(pictures: Path):
    start(pictures)
    with opened(pictures) as files:
        start(pictures, recheck=True)
    assert len(files) == PICTURES + 1
    with opened(pictures) as files:
        start(pictures)
    assert set(files) == {"metadata.csv"}


@pytest.mark.parametrize("content", [b"not a database", b"SQLite format 3\0" + bytes(200), "cut", "link"])
def test_a_damaged_or_foreign_memory_is_made_anew_with_a_word(pictures: Path, content: Any):
    identity = start(pictures).identity
    path = store_path(pictures)
    assert path is not None
    whole = path.read_bytes()
    other = pictures.parent / "other"
    other.write_bytes(whole)
    path.unlink()
    if content == "link":
        path.symlink_to(other)
    else:
        # A cut in the middle leaves the header, and pages that are not there.
        path.write_bytes(whole[:100] + b"\xff" * 3996 if content == "cut" else content)
    known, notes = KnownFiles(pictures, remember=True), Notes()
    known.read([str(pictures / "p0.png")], 1, notes)
    assert len(notes.notes) == 1
    assert known.has(str(pictures / "p0.png"))
    assert other.read_bytes() == whole
    assert start(pictures).identity == identity
    with opened(pictures) as files:
        start(pictures)
    assert set(files) == {"metadata.csv"}


def test_without_a_cache_folder_a_start_works_and_says_so(pictures: Path, monkeypatch, tmp_path: Path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    known, notes = KnownFiles(pictures, remember=True), Notes()
    known.read([str(pictures / "p0.png")], 1, notes)
    assert known.has(str(pictures / "p0.png"))
    assert "nothing is remembered" in notes.notes[0]


def test_commands_that_write_at_the_same_time_leave_a_whole_memory(pictures: Path):
    paths = []
    for number in range(CHUNK + 100):  # more than one transaction
        paths.append(str(pictures / f"q{number}.png"))
        os.link(pictures / f"p{number % PICTURES}.png", paths[-1])
    time.sleep(2 * FINE)

    def read(_: int) -> str:
        known = KnownFiles(pictures, remember=True)
        known.read(paths, len(paths), whole=True)
        assert all(map(known.has, paths))
        return known.states

    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(read, range(3)))) == 1
    with opened(pictures) as files:
        read(0)
    assert files == {}
    known = KnownFiles(pictures, remember=True)
    known.read(paths, len(paths), whole=True)
    for path, record in known.records(paths[:7]).items():
        assert record.whole is not None
        assert record.whole.hex() == digest_file(Path(path))
        assert record.stat == state_of(path)


def plain_identity(rows: list[dict[str, Any]], base: Path) -> tuple[str, str]:
    """Return the identity by its definition."""
    made = hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode())
    files: list[Path] = []

    def look(value: Any) -> None:
        if isinstance(value, dict | list):
            for each in value.values() if isinstance(value, dict) else value:
                look(each)
        elif isinstance(value, str) and value and (base / value).is_file():
            files.append(base / value)

    for row in rows:
        for value in row.values():
            if isinstance(value, str) and (base / value).is_file():
                made.update(f"{(base / value).stat().st_size} ".encode())
            look(value)
    digests = digest_samples(files)
    text = json.dumps([digests[path] for path in files], separators=(",", ":"))
    return made.hexdigest(), hashlib.sha256(text.encode()).hexdigest()


def test_the_identity_is_that_of_its_definition_and_follows_files_that_are_new(pictures: Path):
    rows = [
        {"image": "p0.png", "prompt": "a ball", "more": ["p1.png", {"deep": ["./p2.png", 7]}]},
        {"image": "p1.png", "prompt": "p2.png", "more": None},
        {"image": "p3.png", "prompt": "black/white"},
    ]
    table = pictures / "rows.json"
    table.write_text(json.dumps(rows))
    time.sleep(2 * FINE)

    def identity() -> tuple[str, str]:
        known = KnownFiles(pictures, remember=True)
        return tuple(identity_of_dataset(UnifiedDataset(pictures, table, known=known)))

    seen = {identity()}
    assert seen == {plain_identity(rows, pictures)}
    for name in ("a ball", "black/white"):
        (pictures / name).parent.mkdir(exist_ok=True)
        (pictures / name).write_text("now a file")
        time.sleep(2 * FINE)
        assert identity() == identity() == plain_identity(rows, pictures)
        seen.add(identity())
    assert len(seen) == 3


def test_captions_that_name_a_file_later_change_an_identity_that_was_remembered(pictures: Path):
    first = start(pictures).identity["dataset"]
    assert start(pictures).identity["dataset"] == first
    (pictures / "ball 3").write_text("x")
    assert start(pictures).identity["dataset"] != first
