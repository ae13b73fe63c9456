"""Operators: paths stay inside the dataset, steps compose, previews refuse what loading would."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from dsctl_core.data import LoadImage, SequentialProcess, ToAbsolutePath
from dsctl_core.errors import DsctlError


def test_paths_lead_below_the_base_path(tmp_path):
    assert ToAbsolutePath(tmp_path)("a.png") == tmp_path / "a.png"
    assert ToAbsolutePath(tmp_path)("x/../deep/./a.png") == tmp_path / "deep/a.png"
    assert ToAbsolutePath("data")("t:1.png") == Path("data/t:1.png")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("../secret.png", "leads out of the dataset folder"),
        ("x/../../secret.png", "leads out of the dataset folder"),
        ("..", "leads out of the dataset folder"),
        ("/etc/passwd", "the path is absolute"),
        ("C:\\pictures\\a.png", "the path is absolute"),
        ("https://host/a.png", "is a URL, not a file"),
        ("a\0.png", "has a NUL"),
        ("", "the cell is empty"),
        (None, "the cell is empty"),
        ("\ufeff", "the cell is empty"),
        (["a.png"], "is a list, not a file name"),
        (7, "is the number 7, not a file name"),
        ({"path": "a.png"}, "is an object, not a file name"),
        ("S3://bucket/a.png", "is a URL, not a file"),
        ("data:image/png;base64,AA==", "is a URL, not a file"),
    ],
)
def test_paths_that_leave_the_dataset_or_are_none_are_refused(value, problem):
    with pytest.raises(DsctlError, match=problem) as caught:
        ToAbsolutePath("data")(value)
    assert caught.value.hint


def test_a_dataset_kept_as_links_into_a_store_can_be_read(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (store / "blob").write_bytes(b"x")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").symlink_to(store / "blob")
    assert ToAbsolutePath(tmp_path / "data").preview("a.png").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("A.PNG", "did you mean 'a.png'?"),
        ("a.jpg", "did you mean 'a.png'?"),
        ("pictrue_17.png", "did you mean 'picture_17.png'?"),
        ("zzz", "check the file name, or remove the row"),
        ("deep\\a.png", "use forward slashes in the path"),
        ("no/a.png", "there is no folder"),
    ],
)
def test_a_missing_file_is_named_with_the_one_that_was_meant(tmp_path, value, hint):
    for name in ("a.png", "picture_17.png"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DsctlError, match="does not exist") as caught:
        ToAbsolutePath(tmp_path).preview(value)
    assert hint in caught.value.hint


def test_what_is_at_a_path_but_no_file_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("gone")
    problems = {"folder": "is a folder, not a file", "loop": "cannot be read", "nowhere": "does not exist"}
    for name, problem in problems.items():
        with pytest.raises(DsctlError, match=f"{name} {problem}"):
            ToAbsolutePath(tmp_path).preview(name)


def test_steps_compose_and_preview_stops_at_a_plain_function(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    read = ToAbsolutePath(tmp_path) >> Path.read_text >> str.upper
    assert read("a.txt") == "HELLO"
    assert read.preview("a.txt") is None
    with pytest.raises(DsctlError, match="does not exist"):
        read.preview("b.txt")


def test_a_list_is_processed_entry_by_entry(tmp_path):
    operator = SequentialProcess(ToAbsolutePath("data"))
    assert operator(["a", "b"]) == [Path("data/a"), Path("data/b")]
    for value in ("a", [], None):
        with pytest.raises(DsctlError, match="not a list with at least one entry"):
            operator(value)
    with pytest.raises(DsctlError, match="does not exist"):
        operator.preview(["a"])


def test_operators_can_be_sent_to_loading_processes():
    operator = pickle.loads(pickle.dumps(SequentialProcess(ToAbsolutePath("data") >> LoadImage())))
    assert operator.operator.steps[0]("a") == Path("data/a")
