"""Layouts: Parquet, ImageFolder and captions beside files give the rows that a csv gives; columns can be mapped."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from dsctl_core.data import UnifiedDataset, check_dataset
from dsctl_core.data.metadata import read_dataset, read_metadata
from dsctl_core.errors import DsctlError

PROMPTS = {"a.png": "a dog", "b.png": "a cat"}
ROWS = [{"image": name, "prompt": prompt} for name, prompt in PROMPTS.items()]


@pytest.fixture
def folder(tmp_path):
    """Two pictures and nothing that describes them."""
    base = tmp_path / "data"
    base.mkdir()
    for name in PROMPTS:
        Image.new("RGB", (64, 64)).save(base / name)
    return base


def write_parquet(path: Path, rows: list[dict]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_csv(path: Path, header: str) -> None:
    path.write_text("\n".join([header, *(f"{name},{text}" for name, text in PROMPTS.items())]) + "\n")


def as_parquet(folder):
    write_parquet(folder / "metadata.parquet", ROWS)


def as_captions(folder):
    for name, prompt in PROMPTS.items():
        (folder / name).with_suffix(".txt").write_bytes(b"\xef\xbb\xbf" + prompt.encode() + b"\n")


def as_image_folder_csv(folder):
    write_csv(folder / "metadata.csv", "file_name,text")


def as_image_folder_jsonl(folder):
    lines = (json.dumps({"file_name": name, "caption": text}) for name, text in PROMPTS.items())
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def as_image_folder_with_prompt(folder):
    write_csv(folder / "metadata.csv", "file_name,prompt")


LAYOUTS = {
    as_parquet: "table metadata.parquet of 2 rows",
    as_captions: "folder of 2 files with captions in .txt beside them",
    as_image_folder_csv: "Hugging Face ImageFolder of 2 rows: metadata.csv with file_name as image and text as prompt",
    as_image_folder_jsonl: "Hugging Face ImageFolder of 2 rows: metadata.jsonl with file_name as image and caption as "
    "prompt",
    as_image_folder_with_prompt: "Hugging Face ImageFolder of 2 rows: metadata.csv with file_name as image",
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_a_folder_given_alone_is_recognised_and_gives_the_same_rows(folder, layout):
    layout(folder)
    dataset = UnifiedDataset(folder)
    assert dataset.metadata.layout == LAYOUTS[layout]
    assert [{key: row[key] for key in ("image", "prompt")} for row in dataset.metadata.rows] == ROWS
    assert [row["prompt"] for row in dataset] == list(PROMPTS.values())
    check_dataset(dataset)


def test_parquet_keeps_lists_and_never_makes_a_text_of_a_missing_value(folder):
    rows = [
        {"image": "a.png", "edit_image": ["a.png", "b.png"], "prompt": "NA", "n": 1},
        {"image": "b.png", "edit_image": ["b.png"], "prompt": None, "n": None},
    ]
    write_parquet(folder / "metadata.parquet", rows)
    dataset = UnifiedDataset(folder, data_file_keys="image,edit_image")
    assert list(dataset.metadata.rows) == rows
    assert [picture.size for picture in dataset[0]["edit_image"]] == [(64, 64), (64, 64)]
    with pytest.raises(DsctlError, match=r"metadata.parquet row 2, prompt None: the cell is empty"):
        check_dataset(dataset)


def test_parquet_with_the_pictures_inside_is_read_from_its_own_folder_and_says_so_elsewhere(folder, tmp_path):
    inside = {"bytes": (folder / "a.png").read_bytes(), "path": "a.png"}
    table = write_parquet(folder / "metadata.parquet", [{"image": inside, "prompt": "a dog"}])
    assert UnifiedDataset(folder)[0]["image"].size == UnifiedDataset.default_image_operator(folder)("a.png").size
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(DsctlError, match="row 1, image .*the column has the files themselves") as caught:
        UnifiedDataset(tmp_path / "elsewhere", table)[0]
    assert "--dataset-base-path" in caught.value.hint


def test_parquet_that_is_damaged_is_named(tmp_path):
    path = write_parquet(tmp_path / "m.parquet", ROWS)
    for data in (path.read_bytes()[:100], b"hello, this is no parquet", b""):
        path.write_bytes(data)
        with pytest.raises(DsctlError, match="m.parquet cannot be read as parquet") as caught:
            read_metadata(path)
        assert "\n" not in caught.value.problem
        assert "again" in caught.value.hint
    write_parquet(path, [])
    with pytest.raises(DsctlError, match="m.parquet is empty"):
        read_metadata(path)


def test_captions_beside_files_are_found_in_folders_and_their_faults_belong_to_rows(folder):
    as_captions(folder)
    (folder / "more").mkdir()
    (folder / ".hidden").mkdir()
    for name in ("more/c.png", "more/d.png", "more/e.png", ".hidden/x.png"):
        (folder / name).write_bytes((folder / "a.png").read_bytes())
    (folder / "more/c.txt").write_bytes("caf\xe9".encode("latin-1"))
    (folder / "more/d.txt").write_text(" \n")
    dataset = UnifiedDataset(folder)
    assert [row["image"] for row in dataset.metadata.rows] == [
        "a.png",
        "b.png",
        "more/c.png",
        "more/d.png",
        "more/e.png",
    ]
    wanted = {2: "c.txt is not UTF-8: byte 0xe9 at position 4", 3: "d.txt is empty", 4: "e.txt does not exist"}
    with pytest.raises(DsctlError) as caught:
        check_dataset(dataset)
    assert {problem.row for problem in caught.value.problems} == set(wanted)
    for problem in caught.value.problems:
        assert problem.problem.startswith(f"{folder} row {problem.row + 1} (more/{'cde'[problem.row - 2]}.png), prompt")
        assert wanted[problem.row] in problem.problem
        assert problem.hint


def test_a_link_to_a_folder_above_is_refused_instead_of_followed_for_ever(folder):
    as_captions(folder)
    (folder / "again").symlink_to(folder)
    with pytest.raises(DsctlError, match="again is a link to a folder that contains it"):
        UnifiedDataset(folder)


def test_a_folder_that_nothing_describes_says_what_to_write(folder):
    with pytest.raises(
        DsctlError, match=r"no metadata.csv, .json, .jsonl or .parquet, and no file in it has a caption file"
    ) as e:
        UnifiedDataset(folder)
    assert "(it has 2 pictures or videos)" in e.value.problem
    assert "1.txt for 1.png" in e.value.hint
    write_csv(folder / "metdata.csv", "image,prompt")
    with pytest.raises(DsctlError) as caught:
        UnifiedDataset(folder)
    assert caught.value.hint == f"did you mean --dataset-metadata-path {folder}/metdata.csv?"


def test_a_table_in_the_folder_below_is_pointed_at(folder):
    folder.joinpath("train").mkdir()
    write_csv(folder / "train/metadata.csv", "file_name,text")
    with pytest.raises(DsctlError) as caught:
        UnifiedDataset(folder)
    assert caught.value.hint == f"there is one in {folder}/train: use that folder"


def test_a_plain_folder_cannot_have_two_columns_of_files(folder):
    as_captions(folder)
    with pytest.raises(DsctlError, match="which --data-file-keys image,edit_image needs"):
        UnifiedDataset(folder, data_file_keys="image,edit_image")


def test_columns_can_have_other_names_in_the_table(folder):
    write_csv(folder / "metadata.csv", "file,caption")
    dataset = UnifiedDataset(folder, columns={"prompt": "caption", "image": "file"})
    assert [row["prompt"] for row in dataset] == list(PROMPTS.values())
    swapped = read_dataset(folder, columns={"file": "caption", "caption": "file"})
    assert swapped.rows[0] == {"caption": "a.png", "file": "a dog"}


@pytest.mark.parametrize(
    ("columns", "problem", "hint"),
    [
        ({"prompt": "captoin"}, "has no column 'captoin' to rename to 'prompt'", "--column prompt=caption?"),
        ({"prompt": "xyz"}, "has no column 'xyz'", "--column prompt=COLUMN"),
        ({"file": "caption"}, "already has a column 'file'", "leave out --column file=caption"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(folder, columns, problem, hint):
    write_csv(folder / "metadata.csv", "file,caption")
    with pytest.raises(DsctlError, match=problem) as caught:
        read_dataset(folder, columns=columns)
    assert hint in caught.value.hint


def test_an_image_folder_with_two_columns_of_captions_asks_which(folder):
    (folder / "metadata.csv").write_text("file_name,text,caption\na.png,x,y\n")
    with pytest.raises(DsctlError, match="captions in 'text' and in 'caption'") as caught:
        UnifiedDataset(folder)
    assert caught.value.hint == "choose one of them, such as --column prompt=text"
    assert UnifiedDataset(folder, columns={"prompt": "caption"})[0]["prompt"] == "y"
