"""Folders of pictures: kohya's folders repeat, and nothing is left out without a word."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dsctl_core.data import UnifiedDataset, check_dataset
from dsctl_core.errors import DsctlError


def add(folder: Path, *names: str) -> None:
    """Write files: pictures by their suffix, else the text "text"."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.new("RGB", (32, 32), (number, 0, 0)).save(path)
        else:
            path.write_text("text")


def test_kohyas_folders_repeat_their_rows_and_name_those_without_a_caption(tmp_path):
    add(tmp_path, "3_sks dog/a.png", "3_sks dog/a.txt", "3_sks dog/b.png", "01_a_cat/c.png")
    dataset = UnifiedDataset(tmp_path, repeat=2)
    check_dataset(dataset)
    assert len(dataset) == 2 * (3 + 3 + 1)
    assert [row["image"] for row in dataset.metadata.rows] == ["01_a_cat/c.png", "3_sks dog/a.png", "3_sks dog/b.png"]
    assert [row["prompt"] for row in dataset[:7]] == ["a_cat", *["text"] * 3, *["sks dog"] * 3]
    assert dataset.rows_in_use == [0, 1, 2]
    assert dataset.buckets() == [((32, 32),)] * 7
    assert dataset.metadata.layout == (
        "folder of 3 files, repeated by the names of their folders: '01_a_cat' 1 time, '3_sks dog' 3 times"
    )
    assert len(dataset.without({1})) == 2 * 4
    assert [row["_row"] for row in dataset.each_once()[:3]] == [0, 1, 2]


@pytest.mark.parametrize("name", ["2024_trip", "0_dog", "dog_10", "x10_dog", "10-dog"])
def test_other_numbers_in_the_names_of_folders_are_no_repeats(tmp_path, name):
    add(tmp_path, f"{name}/a.png", f"{name}/a.txt")
    dataset = UnifiedDataset(tmp_path)
    assert (len(dataset), dataset.metadata.repeats) == (1, None)


@pytest.mark.parametrize("other", ["b.png", "more/b.png", "10_dog/in/b.png"])
def test_a_number_that_is_no_repeat_because_of_other_files_is_named(tmp_path, other):
    add(tmp_path, "10_dog/a.png", "10_dog/a.txt", other, str(Path(other).with_suffix(".txt")))
    dataset = UnifiedDataset(tmp_path)
    assert len(dataset) == 2
    assert "the number of '10_dog' is no repeat, as not all files lie in such folders" in dataset.metadata.layout


def test_what_is_left_out_is_counted_by_suffix_and_captions_alone_are_named(tmp_path):
    add(tmp_path, "a.png", "a.txt", "b.npz", "c.npz", "read.md", "d.pdf", "d.txt", "LICENSE", "in/e.caption", ".x.png")
    dataset = UnifiedDataset(tmp_path)
    assert dataset.notes() == [
        "Dataset: folder of 1 file with captions in .txt beside them",
        "5 files were left out: 2 .npz, 1 .md, 1 .pdf, 1 without a suffix",
        "2 captions have no picture: d.txt, in/e.caption",
    ]


@pytest.mark.parametrize(
    ("names", "contents"),
    [
        ((), "(it has 0 pictures or videos)"),
        (("a.pdf", "b.pdf", "c.zip"), "(it has 0 pictures or videos, 2 .pdf, 1 .zip, which are not read as pictures)"),
        (("x/a.png", "b.png"), "(it has 2 pictures or videos)"),
        (("a.txt",), "(it has 0 pictures or videos, 1 .txt, which are not read as pictures)"),
    ],
)
def test_a_folder_without_a_dataset_says_what_lies_in_it(tmp_path, names, contents):
    add(tmp_path, *names)
    with pytest.raises(DsctlError) as caught:
        UnifiedDataset(tmp_path)
    assert contents in caught.value.problem
    assert "1.txt for 1.png" in caught.value.hint


def test_a_folder_is_listed_without_opening_its_pictures(tmp_path, monkeypatch):
    add(tmp_path, *(f"{number}.png" for number in range(20)), *(f"{number}.txt" for number in range(20)), "a.npz")
    opened = []
    real_open, real_read = Path.open, Path.read_bytes
    monkeypatch.setattr(Path, "open", lambda path, *a, **k: opened.append(path.suffix) or real_open(path, *a, **k))
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path.suffix) or real_read(path))
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("a picture was opened"))
    assert len(UnifiedDataset(tmp_path)) == 20
    assert set(opened) == {".txt"}
