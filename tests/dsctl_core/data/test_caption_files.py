"""Captions beside pictures: every spelling is found, and what cannot be read is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dsctl_core.data import Captions, UnifiedDataset, check_dataset
from dsctl_core.data.rows import blank
from dsctl_core.errors import DsctlError


def folder_with(tmp_path: Path, **files: str | bytes) -> Path:
    """Return a folder with a.png and these files; a dot of a name is written as two underscores."""
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    for name, data in files.items():
        path = tmp_path / name.replace("__", ".")
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return tmp_path


def prompt_of(folder: Path) -> str:
    dataset = UnifiedDataset(folder)
    check_dataset(dataset)
    return dataset[0]["prompt"]


NAMES = ["a__txt", "a__caption", "a__TXT", "a__CAPTION", "a__Txt", "a__png__txt", "a__png__caption"]


@pytest.mark.parametrize("name", NAMES)
def test_a_caption_is_found_by_every_name_that_people_give_it(tmp_path, name):
    assert prompt_of(folder_with(tmp_path, **{name: "a dog\n"})) == "a dog"


@pytest.mark.parametrize("name", ["a__json", "a__png__json", "a__JSON"])
@pytest.mark.parametrize("key", ["caption", "prompt", "text"])
def test_a_caption_is_found_in_a_json_file_by_its_key(tmp_path, name, key):
    assert prompt_of(folder_with(tmp_path, **{name: json.dumps({key: "a dog", "size": 3})})) == "a dog"


def test_several_captions_in_a_json_file_are_chosen_from(tmp_path):
    dataset = UnifiedDataset(folder_with(tmp_path, a__json='{"caption": ["a dog", "a brown dog"]}'))
    check_dataset(dataset)
    assert {dataset.row(0, seed)["prompt"] for seed in range(20)} == {"a dog", "a brown dog"}


@pytest.mark.parametrize(
    ("files", "problem", "hint"),
    [
        ({"a__txt": "a", "a__caption": "b"}, "a.png has two captions: a.caption and a.txt", "remove one"),
        ({"a__txt": "a", "a__TXT": "a"}, "a.png has two captions: a.TXT and a.txt", "remove one"),
        ({"a__txt": "a", "a__png__txt": "b"}, "a.png has two captions: a.png.txt and a.txt", "remove one"),
        ({"a__json": '{"text": "a"}', "a__png__json": "{}"}, "two captions: a.json and a.png.json", "remove one"),
        ({"a__txt": "a", "a__json": '{"caption": "b"}'}, "two captions: a.json and a.txt", "remove one"),
        ({"a__json": '{"tags": ["a"]}'}, "a.json has none of the keys caption, prompt, text", '{"caption": "..."}'),
        ({"a__json": '["a"]'}, "a.json is a list, not an object", '{"caption": "..."}'),
        ({"a__json": '{"caption": "a"'}, "a.json cannot be read as json", '{"caption": "..."}'),
        ({"a__json": "[" * 100_000}, "a.json cannot be read as json", '{"caption": "..."}'),
        ({"a__json": '{"caption": 7}'}, "the value is the number 7, not text", "double quotes"),
        ({"a__json": '{"caption": "a", "text": "b"}'}, "captions in 'caption' and 'text'", "keep one"),
        ({"a__txt": "dog".encode("utf-16")}, "a.txt is UTF-16, not UTF-8", "save it as UTF-8"),
        ({"a__txt": "\ufeff\ufeff"}, "a.txt is empty", "write the caption"),
        ({"a__txt": "\u200b\u2060 \u00ad\n"}, "a.txt is empty", "write the caption"),
        ({"a__caption": "\u3164"}, "a.caption is empty", "write the caption"),
    ],
)
def test_a_caption_that_cannot_be_read_is_named(tmp_path, files, problem, hint):
    with pytest.raises(DsctlError) as caught:
        prompt_of(folder_with(tmp_path, **files))
    assert f"{tmp_path} row 1 (a.png), prompt" in caught.value.problem
    assert problem in caught.value.problem
    assert hint in caught.value.hint
    assert "\n" not in caught.value.problem


@pytest.mark.parametrize("about", ['{"size": 3}', '{"caption": "a dog"}', "[1]", "no json"])
def test_a_json_file_beside_a_caption_may_be_about_something_else(tmp_path, about):
    assert prompt_of(folder_with(tmp_path, a__txt="a dog", a__json=about)) == "a dog"


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\ufeff\0"), max_size=8), min_size=2, max_size=4),
    st.sampled_from(["\r\n", "\r", "\u2028", "\u2029", "\x85"]),
)
def test_every_line_end_gives_the_prompt_of_a_newline(parts: list[str], end: str):
    parts = ["a", *(part.strip("\r\n") for part in parts), "b"]
    captions = Captions(prefix="sks")
    expected = captions.texts("\n".join(parts))
    assert captions.texts(end.join(parts)) == expected
    assert captions.texts("\ufeff" + end.join(parts)) == expected
    assert "\r" not in expected[0]


def test_joiners_inside_a_caption_stay():
    family = "\U0001f468\u200d\U0001f469 and \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    assert Captions().texts(family) == (family,)
    assert not blank(family)
    assert blank("") and blank("\u200d\ufeff\t")
