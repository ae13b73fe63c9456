"""Operators that choose by what they are given, and the defaults that are made of them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from PIL import Image

from dsctl_core.data import (
    LoadImage,
    RouteByExtensionName,
    RouteByType,
    SequentialProcess,
    ToAbsolutePath,
    ToList,
    UnifiedDataset,
)
from dsctl_core.errors import DsctlError


def test_the_first_type_that_fits_decides():
    route = RouteByType([(str, str.upper), (list, SequentialProcess(str.lower)), (None, ToList())])
    assert route("a") == "A"
    assert route(["A", "B"]) == ["a", "b"]
    assert route(7) == route.preview(7) == [7]
    assert route.preview("a") is None


@pytest.mark.parametrize(("value", "problem"), [(None, "the cell is empty"), (7, "the number 7, not a file name")])
def test_a_type_that_has_no_operator_is_refused(value, problem):
    with pytest.raises(DsctlError, match=problem) as caught:
        RouteByType([(str, str.upper)])(value)
    assert caught.value.hint


@pytest.mark.parametrize("empty", [None, "", "  "])
def test_an_empty_cell_is_nothing_where_it_may_be_empty(tmp_path, empty):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "other": "a.png", "prompt": "x"}, {"image": "a.png", "other": empty, "prompt": "y"}]
    (tmp_path / "metadata.json").write_text(json.dumps(rows))
    dataset = UnifiedDataset(tmp_path, data_file_keys="image,other", optional_keys=("other",))
    assert dataset[0]["other"].size == (32, 32)
    assert dataset[1]["other"] is None
    assert [len(dataset.files(number, "other")) for number in (0, 1)] == [1, 0]
    assert dataset.buckets() == [((32, 32), (32, 32)), ((32, 32), None)]
    with pytest.raises(DsctlError, match="row 2, other .*the cell is empty"):
        UnifiedDataset(tmp_path, data_file_keys="image,other")[1]


def test_the_suffix_decides_whatever_its_case():
    route = RouteByExtensionName([(("png", "jpg"), ToList()), (("mp4",), str)])
    assert route(Path("a.JPG")) == route.preview(Path("a.JPG")) == [Path("a.JPG")]
    assert route("deep/a.mp4") == "deep/a.mp4"
    with pytest.raises(DsctlError, match="a.docx has the suffix 'docx'") as caught:
        route("a.docx")
    assert caught.value.hint == "known: png, jpg, mp4"
    assert RouteByExtensionName([(None, ToList())])("a") == ["a"]


def test_a_default_operator_takes_one_file_or_a_list_and_can_be_sent_to_a_process(tmp_path):
    Image.new("RGB", (70, 40)).save(tmp_path / "a.png")
    operator = pickle.loads(pickle.dumps(UnifiedDataset.default_image_operator(tmp_path)))
    assert operator("a.png").size == operator.preview("a.png") == (64, 32)
    assert [picture.size for picture in operator(["a.png"] * 2)] == operator.preview(["a.png"] * 2) == [(64, 32)] * 2
    frames = UnifiedDataset.default_video_operator(tmp_path)("a.png")
    assert [frame.size for frame in frames] == [(64, 32)]


def test_files_outside_the_folder_are_read_only_when_that_is_allowed(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    inside = tmp_path / "inside"
    inside.mkdir()
    for name in ("../a.png", str(tmp_path / "a.png")):
        assert (ToAbsolutePath(inside, allow_outside=True) >> LoadImage())(name).size == (32, 32)
        with pytest.raises(DsctlError) as caught:
            ToAbsolutePath(inside)(name)
        assert "--allow-outside" in caught.value.hint
