"""Pairs of folders: matched by name, with a problem for each picture that has no partner."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dsctl_core.data import DatasetError, UnifiedDataset, check_dataset
from dsctl_core.data.pairs import PAIRS
from dsctl_core.errors import DsctlError

KEYS = ("image", "edit_image")


def add(folder: Path, *names: str) -> None:
    """Write files: pictures, and captions that are their own names."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text(path.stem)
        else:
            Image.new("RGB", (32, 48 if "control" in name else 32), (number, 0, 0)).save(path)


@pytest.mark.parametrize(("target", "reference"), PAIRS)
def test_two_folders_are_matched_by_name(tmp_path, target, reference):
    add(tmp_path, f"{target}/a.png", f"{target}/a.txt", f"{reference}/a.jpg")
    add(tmp_path, f"{target}/in/b.png", f"{target}/in/b.txt", f"{reference}/in/b.png")
    dataset = UnifiedDataset(tmp_path, data_file_keys=KEYS)
    check_dataset(dataset)
    assert list(dataset.metadata.rows) == [
        {"image": f"{target}/a.png", "edit_image": f"{reference}/a.jpg", "prompt": "a"},
        {"image": f"{target}/in/b.png", "edit_image": f"{reference}/in/b.png", "prompt": "b"},
    ]
    assert dataset.metadata.layout == f"folder of 2 pairs: {target}/ as image and {reference}/ as edit_image"
    assert dataset[0]["edit_image"].size == (32, 48 if reference == "control" else 32)


def test_a_picture_without_its_partner_or_with_two_is_a_problem_that_names_it(tmp_path):
    add(tmp_path, *(f"target/{name}.png" for name in "abd"), *(f"target/{name}.txt" for name in "ab"))
    add(tmp_path, "control/a.png", "control/a.jpg", "control/c.png", "control/d.png", "more/x.png", "read.txt")
    dataset = UnifiedDataset(tmp_path, data_file_keys=KEYS)
    with pytest.raises(DatasetError) as caught:
        check_dataset(dataset)
    wanted = [
        (0, "(target/a.png), edit_image (not read): control/ has control/a.jpg and control/a.png of one name"),
        (1, "(target/b.png), edit_image (not read): control/ has no picture of the name of target/b.png"),
        (2, "(control/c.png), image (not read): target/ has no picture of the name of control/c.png"),
        (3, "(target/d.png), prompt (not read): " + f"{tmp_path}/target/d.txt does not exist"),
    ]
    assert [problem.row for problem in caught.value.problems] == [row for row, _ in wanted]
    for problem, (row, text) in zip(caught.value.problems, wanted, strict=True):
        assert problem.problem == f"{tmp_path} row {row + 1} {text}"
        assert problem.hint
    assert {problem.kind for problem in caught.value.problems} == {"partner", "caption"}
    assert dataset.metadata.left_out.lines() == [
        "1 file was left out: 1 .png",
        "1 caption has no picture: read.txt",
    ]


def test_a_pair_of_which_one_column_is_read_says_how_to_read_both(tmp_path):
    add(tmp_path, "target/a.png", "target/a.txt", "control/a.png")
    with pytest.raises(DsctlError, match=r"has target/ and control/ with pairs .* only the column 'image'") as caught:
        UnifiedDataset(tmp_path)
    assert "--data-file-keys image,edit_image" in caught.value.hint
    add(tmp_path, "control/a.txt")
    assert len(UnifiedDataset(tmp_path)) == 2, "a folder that has captions of its own is no reference"


def test_folders_of_which_several_pairs_can_be_made_are_refused(tmp_path):
    add(tmp_path, "target/a.png", "control/a.png", "source/a.png")
    with pytest.raises(DsctlError, match="can be read as target/ with control/ or target/ with source/"):
        UnifiedDataset(tmp_path, data_file_keys=KEYS)


def test_other_folders_are_no_pair(tmp_path):
    add(tmp_path, "after/a.png", "before/a.png")
    with pytest.raises(DsctlError, match="which --data-file-keys image,edit_image needs") as caught:
        UnifiedDataset(tmp_path, data_file_keys=KEYS)
    assert "target/ and control/" in caught.value.hint
