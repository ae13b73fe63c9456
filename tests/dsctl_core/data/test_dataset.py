"""UnifiedDataset: the published call shape, the sequence, and errors with file, row, value and remedy."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
from PIL import Image

from dsctl_core.data import LoadImage, SequentialProcess, ToAbsolutePath, UnifiedDataset
from dsctl_core.errors import DsctlError, UsageError


@pytest.fixture
def folder(tmp_path):
    """A dataset of two pictures."""
    base = tmp_path / "data"
    base.mkdir()
    Image.new("RGB", (100, 70), "red").save(base / "a.png")
    Image.new("RGB", (64, 64), "blue").save(base / "b.png")
    (base / "metadata.csv").write_text('image,prompt\na.png,"a dog"\nb.png,"a cat"\n')
    return base


def test_the_call_of_the_published_training_script_works(folder):
    dataset = UnifiedDataset(
        base_path=str(folder),
        metadata_path=f"{folder}/metadata.csv",
        repeat=50,
        data_file_keys="image",
        main_data_operator=UnifiedDataset.default_image_operator(
            base_path=str(folder),
            height=64,
            width=64,
            height_division_factor=16,
            width_division_factor=16,
        ),
    )
    assert len(dataset) == 100
    row = dataset[3]
    assert (row["prompt"], row["image"].size, row["image"].mode, row["_row"]) == ("a cat", (64, 64), "RGB", 1)
    assert row["image"].getpixel((0, 0)) == (0, 0, 255)


def test_it_is_a_sequence_that_ends(folder):
    dataset = UnifiedDataset(folder, repeat=2)
    assert [row["prompt"] for row in dataset] == ["a dog", "a cat"] * 2
    assert dataset[-1]["prompt"] == "a cat"
    assert [row["_row"] for row in dataset[1:3]] == [1, 0]
    with pytest.raises(IndexError):
        dataset[4]


def test_a_billion_repeats_cost_nothing(folder):
    dataset = UnifiedDataset(folder, repeat=10**12)
    assert len(dataset) == 2 * 10**12
    assert dataset[10**12 + 1]["prompt"] == "a cat"


def test_torch_loads_it_with_processes(folder):
    from torch.utils.data import DataLoader

    loader = DataLoader(UnifiedDataset(folder, repeat=2), batch_size=2, num_workers=1, collate_fn=list)
    assert [[row["prompt"] for row in batch] for batch in loader] == [["a dog", "a cat"]] * 2
    assert len(pickle.loads(pickle.dumps(UnifiedDataset(folder)))) == 2  # what a spawned process is sent


def test_a_row_handed_out_is_the_callers_own(folder):
    dataset = UnifiedDataset(folder)
    dataset[0]["prompt"] = "changed"
    assert dataset[0]["prompt"] == "a dog"


def test_columns_have_operators_of_their_own(folder):
    (folder / "metadata.jsonl").write_text('{"image": "a.png", "edit_image": ["a.png", "b.png"], "prompt": "x"}\n')
    dataset = UnifiedDataset(
        folder,
        folder / "metadata.jsonl",
        data_file_keys="image, edit_image",
        special_operator_map={"edit_image": SequentialProcess(ToAbsolutePath(folder) >> LoadImage())},
    )
    assert dataset[0]["image"].size == (96, 64)
    assert [image.size for image in dataset[0]["edit_image"]] == [(100, 70), (64, 64)]
    assert dataset.preview(0, "image") == (96, 64)
    assert dataset.preview(0, "edit_image") == [(100, 70), (64, 64)]


def test_a_plain_function_is_an_operator(folder):
    dataset = UnifiedDataset(folder, main_data_operator=str.upper)
    assert dataset[0]["image"] == "A.PNG"
    assert dataset.preview(0, "image") is None


def test_an_error_names_file_row_line_column_value_and_remedy(folder):
    (folder / "metadata.csv").write_text("image,prompt\n\na.png,a dog\nB.PNG,a cat\n../c.png,x\nb.png, \n")
    dataset = UnifiedDataset(folder)
    wanted = {
        1: (f"{folder}/metadata.csv row 2 (line 4), image 'B.PNG': {folder}/B.PNG does not exist", "'b.png'"),
        2: (f"{folder}/metadata.csv row 3 (line 5), image '../c.png': the path leads out of the dataset", "move"),
        3: (f"{folder}/metadata.csv row 4 (line 6), prompt ' ': the cell is empty", "add a text"),
    }
    for number, (problem, hint) in wanted.items():
        with pytest.raises(DsctlError) as caught:
            dataset[number]
        assert caught.value.problem.startswith(problem)
        assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "problem", "hint"),
    [
        ({"repeat": 0}, "cannot be repeated 0 times", "1 or more"),
        ({"data_file_keys": "image,,x"}, "names an empty column", "commas"),
        ({"data_file_keys": "image,image"}, "names the column 'image' twice", "once"),
        ({"special_operator_map": {"imag": str}}, "unknown column in special_operator_map 'imag'", "'image'"),
        ({"base_path": ""}, "base path is empty", "folder"),
    ],
)
def test_a_wrong_call_is_a_usage_error(folder, arguments, problem, hint):
    with pytest.raises(UsageError, match=problem) as caught:
        UnifiedDataset(**{"base_path": folder, **arguments})
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "problem", "hint"),
    [
        ({"base_path": "nowhere"}, "the dataset folder nowhere does not exist", "--dataset-base-path"),
        ({"data_file_keys": "video"}, r"has no column 'video' \(its columns: 'image', 'prompt'\)", "--data-file-keys"),
        ({"metadata_path": "metadata.csv"}, "metadata file 'metadata.csv' does not exist", "did you mean"),
        ({"metadata_path": "no.csv"}, "metadata file 'no.csv' does not exist", "--dataset-metadata-path"),
    ],
)
def test_a_dataset_that_is_not_there_is_named(folder, arguments, problem, hint):
    with pytest.raises(DsctlError, match=problem) as caught:
        UnifiedDataset(**{"base_path": folder, **arguments})
    assert hint in caught.value.hint


def test_a_base_path_that_is_a_file_is_refused(folder):
    with pytest.raises(DsctlError, match="metadata.csv is not a folder"):
        UnifiedDataset(folder / "metadata.csv")


def test_reading_and_checking_a_dataset_imports_neither_torch_nor_pandas(folder):
    code = (
        "import sys; from dsctl_core.data import UnifiedDataset, check_dataset; "
        "assert 'PIL' not in sys.modules; "
        "dataset = UnifiedDataset(sys.argv[1]); check_dataset(dataset); dataset[0]; "
        "print(sorted({'torch', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
