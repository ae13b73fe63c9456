"""The cheap check: what it finds, how it says it, and that loading says the same."""

from __future__ import annotations

import pickle

import pytest
from PIL import Image

from dsctl_core.data import DatasetError, UnifiedDataset, check_dataset
from dsctl_core.errors import DsctlError


@pytest.fixture
def folder(tmp_path):
    """A dataset folder with one good picture and several bad ones."""
    base = tmp_path / "data"
    base.mkdir()
    Image.effect_noise((64, 64), 50).save(base / "good.png")
    Image.new("RGB", (10, 10)).save(base / "small.png")
    (base / "cut.png").write_bytes((base / "good.png").read_bytes()[:-200])
    (base / "text.png").write_text("hello")
    (base / "zero.png").write_bytes(b"")
    return base


def dataset(folder, *rows: str, header: str = "image,prompt") -> UnifiedDataset:
    (folder / "metadata.csv").write_text("\n".join([header, *rows]) + "\n")
    return UnifiedDataset(folder)


def test_a_good_dataset_passes(folder):
    check_dataset(dataset(folder, "good.png,a dog", "good.png,nan", "good.png,007"))


@pytest.mark.parametrize(
    ("row", "problem", "hint"),
    [
        ("other.webp,x", "image 'other.webp': {folder}/other.webp does not exist", "check the file name"),
        ("goood.png,x", "image 'goood.png': {folder}/goood.png does not exist", "did you mean 'good.png'?"),
        ("cut.png,x", "image 'cut.png': {folder}/cut.png is damaged or cut off (", "download the file again"),
        ("zero.png,x", "image 'zero.png': {folder}/zero.png is empty (0 bytes)", "download the file again"),
        ("text.png,x", "image 'text.png': {folder}/text.png is not a picture", "download the file again"),
        ("small.png,x", "image 'small.png': the picture is 10x10 pixels, but both sides must have", "larger picture"),
        ("../x.png,x", "image '../x.png': the path leads out of the dataset folder", "--dataset-base-path"),
        ("/x.png,x", "image '/x.png': the path is absolute", "make the path relative to the dataset folder"),
        (",x", "image '': the cell is empty", "remove the row"),
        ("good.png,", "prompt '': the cell is empty", "remove the row"),
        ('good.png,"  "', "prompt '  ': the cell is empty", "remove the row"),
    ],
)
def test_a_bad_row_is_one_line_with_file_row_value_and_remedy(folder, row, problem, hint):
    with pytest.raises(DatasetError) as caught:
        check_dataset(dataset(folder, "good.png,a dog", row))
    assert caught.value.problem.startswith(f"{folder}/metadata.csv row 2 (line 3), {problem.format(folder=folder)}")
    assert hint in caught.value.hint
    assert "\n" not in caught.value.problem + caught.value.hint


def test_the_error_tells_the_first_problem_and_counts_the_others(folder):
    with pytest.raises(DatasetError) as caught:
        check_dataset(dataset(folder, "good.png,x", "gone.png,", *["gone.png,x"] * 8, "good.png,x"))
    assert "row 2 (line 3), prompt '': the cell is empty" in caught.value.problem
    assert caught.value.problem.endswith("(and 9 more: rows 2, 3, 4, 5, 6, ...)")
    assert [problem.row for problem in caught.value.problems] == [1, *range(1, 10)]
    with pytest.raises(DatasetError, match="and at least 4 more"):
        check_dataset(dataset(folder, *["gone.png,x"] * 9), limit=5)


def test_a_missing_prompt_column_is_found_before_any_row(folder):
    with pytest.raises(DsctlError, match=r"has no column 'prompt' \(its columns: 'image', 'promt'\)") as caught:
        check_dataset(dataset(folder, "gone.png,x", header="image,promt"))
    assert caught.value.hint == "rename the column 'promt' to 'prompt', or give --column prompt=promt"


def test_a_row_that_lacks_a_key_in_json_is_named(folder):
    (folder / "metadata.json").write_text('[{"image": "good.png", "prompt": "x"}, {"image": "good.png"}]')
    with pytest.raises(DatasetError, match="metadata.json row 2, prompt: the cell is empty"):
        check_dataset(UnifiedDataset(folder, folder / "metadata.json"))


def test_a_number_as_prompt_is_refused_in_json(folder):
    (folder / "metadata.jsonl").write_text('{"image": "good.png", "prompt": 7}\n')
    with pytest.raises(DatasetError, match=r"row 1 \(line 1\), prompt 7: the value is the number 7, not text"):
        check_dataset(UnifiedDataset(folder, folder / "metadata.jsonl"))


def test_the_same_file_in_many_rows_is_opened_once(folder, monkeypatch):
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or real(path))
    check_dataset(dataset(folder, *["good.png,x"] * 50))
    assert len(opened) == 1


def test_progress_sees_every_row(folder):
    seen = []

    class Recorder:
        def start(self, what, total, done=0, unit="step"):
            seen.append((what, total))

        def advance(self, n=1, **fields):
            seen.append(n)

        def finish(self):
            seen.append("finish")

        def note(self, message):
            seen.append(message)

    check_dataset(dataset(folder, "good.png,x", "good.png,y"), progress=Recorder())
    assert seen == [("Checking the dataset", 2), 1, 1, "finish"]


def test_what_the_check_says_is_what_loading_says(folder):
    rows = ["gone.png,x", "cut.png,x", "zero.png,x", "text.png,x", "small.png,x", "../x.png,x", ",x", "good.png,"]
    data = dataset(folder, *rows)
    with pytest.raises(DatasetError) as caught:
        check_dataset(data)
    for number, problem in enumerate(caught.value.problems):
        with pytest.raises(DsctlError) as loading:
            data[number]
        assert (loading.value.problem, loading.value.hint) == (problem.problem, problem.hint)


def test_the_error_can_cross_processes(folder):
    with pytest.raises(DatasetError) as caught:
        check_dataset(dataset(folder, "gone.png,x"))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.problem, copy.hint, copy.problems[0].row) == (caught.value.problem, caught.value.hint, 0)
