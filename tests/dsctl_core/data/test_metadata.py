"""Metadata files: every format gives the same rows, and everything wrong with one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsctl_core.data.metadata import Metadata, find_metadata, read_metadata, text_cell
from dsctl_core.errors import DsctlError

CSV = b"image,prompt\na.png,a dog\nb.png,a cat\n"


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def read(folder: Path, name: str, data: bytes) -> Metadata:
    return read_metadata(written(folder, name, data))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("m.csv", CSV),
        ("m.csv", b"\xef\xbb\xbf" + CSV),
        ("m.CSV", CSV.replace(b"\n", b"\r\n")),
        ("m.csv", CSV.replace(b"\n", b"\n\n") + b"\n\n"),
        ("m.csv", CSV.rstrip(b"\n")),
        ("m.json", b'[{"image": "a.png", "prompt": "a dog"}, {"image": "b.png", "prompt": "a cat"}]'),
        ("m.json", b'\xef\xbb\xbf[{"image": "a.png", "prompt": "a dog"}, {"image": "b.png", "prompt": "a cat"}]\n'),
        ("m.jsonl", b'{"image": "a.png", "prompt": "a dog"}\n{"image": "b.png", "prompt": "a cat"}\n'),
        (
            "m.jsonl",
            b'\xef\xbb\xbf{"image": "a.png", "prompt": "a dog"}\n\n{"image": "b.png", "prompt": "a cat"}\n\n  \n',
        ),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, data):
    metadata = read(tmp_path, name, data)
    assert metadata.columns == ("image", "prompt")
    assert metadata.rows == ({"image": "a.png", "prompt": "a dog"}, {"image": "b.png", "prompt": "a cat"})


@pytest.mark.parametrize("text", ["007", "1e5", "NA", "null", "nan", "None", "True", "-", "3.0"])
def test_text_that_looks_like_something_else_stays_text(tmp_path, text):
    rows = [
        read(tmp_path, "m.csv", f"image,prompt\na.png,{text}\n".encode()).rows[0],
        read(tmp_path, "m.json", f'[{{"prompt": "{text}"}}]'.encode()).rows[0],
        read(tmp_path, "m.jsonl", f'{{"prompt": "{text}"}}'.encode()).rows[0],
    ]
    assert [text_cell(row["prompt"]) for row in rows] == [text, text, text]


def test_quoted_csv_text_may_hold_commas_quotes_and_line_breaks(tmp_path):
    metadata = read(tmp_path, "m.csv", b'image,prompt\na.png,"a ""red"", round\nball"\nb.png,x\n')
    assert metadata.rows[0]["prompt"] == 'a "red", round\nball'
    assert tuple(metadata.lines) == (2, 4)


def test_places_count_rows_and_lines_from_one(tmp_path):
    metadata = read(tmp_path, "m.jsonl", b'\n{"a": "x"}\n\n{"a": "y"}\n')
    assert metadata.location(1) == f"{tmp_path}/m.jsonl row 2 (line 4)"
    assert read(tmp_path, "m.json", b'[{"a": "x"}]').location(0) == f"{tmp_path}/m.json row 1"


BAD = {
    "zero bytes": ("m.csv", b"", "m.csv is empty", "one row for each picture"),
    "zero bytes json": ("m.json", b" \n", "m.json is empty", "one row"),
    "zero bytes jsonl": ("m.jsonl", b"\n\n", "m.jsonl is empty", "one row"),
    "empty list": ("m.json", b"[]", "m.json is empty", "one row"),
    "only a header": ("m.csv", b"image,prompt\n", "m.csv has a header but no rows", "one row for each picture"),
    "duplicate header": (
        "m.csv",
        b"image,prompt,image\na,b,c\n",
        "'image' twice in its header (columns 1 and 3)",
        "remove",
    ),
    "too many cells": (
        "m.csv",
        CSV + b"c.png,a red, round ball\n",
        "row 3 (line 4) has 3 cells, but the header has 2",
        "double quotes",
    ),
    "too few cells": ("m.csv", CSV + b"c.png\n", "row 3 (line 4) has 1 cells, but the header has 2", "'prompt'"),
    "open quote": ("m.csv", CSV + b'c.png,"a ball\n\n', "row 3 (line 4) cannot be read as csv", "double quotes"),
    "latin-1": (
        "m.csv",
        CSV + "c.png,café\n".encode("latin-1"),
        "line 4 is not UTF-8: byte 0xe9 at position 10",
        "UTF-8",
    ),
    "latin-1 far in": ("m.csv", CSV * 5000 + b"\xff,x\n", "line 15001 is not UTF-8: byte 0xff at position 1", "UTF-8"),
    "latin-1 json": ("m.json", b'[\n{"prompt": "caf\xe9"}]', "line 2 is not UTF-8: byte 0xe9", "UTF-8"),
    "latin-1 jsonl": ("m.jsonl", b'{"prompt": "x"}\n{"prompt": "caf\xe9"}', "line 2 is not UTF-8: byte 0xe9", "UTF-8"),
    "utf-16": ("m.csv", CSV.decode().encode("utf-16"), "is UTF-16, not UTF-8", "UTF-8"),
    "cut-off json": (
        "m.json",
        b'[{"image": "a.png"},\n {"image": "b.p',
        "m.json line 2, column 12: Unterminated",
        "cut off",
    ),
    "json cut between values": ("m.json", b'[{"image": "a.png"},\n {"image":', "m.json line 2, column 11", "cut off"),
    "cut-off jsonl": ("m.jsonl", b'{"image": "a.png"}\n{"image": "b', "row 2 (line 2), column 11", "cut off"),
    "comma at the end": ("m.json", b'[{"image": "a.png"},\n]', "m.json line", "none after the last"),
    "jsonl named json": (
        "m.json",
        b'{"image": "a"}\n{"image": "b"}\n',
        "line 2, column 1: Extra data",
        "rename the file to m.jsonl",
    ),
    "json named jsonl": ("m.jsonl", b'[\n{"image": "a"}\n]\n', "row 1 (line 1)", "rename the file to m.json"),
    "an object": ("m.json", b'{"image": ["a.png"]}', "is an object, not a list", '[{"image"'),
    "a list of texts": ("m.json", b'["a.png"]', "row 1 is text, not an object", '{"image"'),
    "a list in jsonl": ("m.jsonl", b'{"image": "a"}\n[1]\n', "row 2 (line 2) is a list, not an object", '{"image"'),
    "duplicate key": (
        "m.json",
        b'[{"a": 1}, {"image": "a", "image": "b"}]',
        "row 2 has the key 'image' twice",
        "keep one",
    ),
    "not a number": (
        "m.jsonl",
        b'{"prompt": NaN}',
        "row 1 (line 1), prompt, is nan, not a finite",
        "plain json",
    ),
    "too deep": ("m.json", b"[" * 200_000, "m.json is nested more than 64 levels deep", "plain json"),
    "unknown suffix": ("m.xlsx", b"PK", "has the suffix '.xlsx'", ".csv, .json, .jsonl"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_metadata_is_one_clear_line_with_the_file_and_a_remedy(tmp_path, kind):
    name, data, problem, hint = BAD[kind]
    with pytest.raises(DsctlError) as caught:
        read(tmp_path, name, data)
    assert problem in caught.value.problem
    assert str(tmp_path / name) in caught.value.problem
    assert "\n" not in caught.value.problem + (caught.value.hint or "\n")
    assert hint in caught.value.hint


def test_a_metadata_path_that_is_no_file_is_named(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    for name, problem in [
        ("no.csv", "does not exist"),
        ("folder.csv", "is not a file"),
        ("loop.csv", "cannot be read"),
    ]:
        with pytest.raises(DsctlError, match=rf"{name} {problem}") as caught:
            read_metadata(tmp_path / name)
        assert caught.value.hint


def test_metadata_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = written(tmp_path, "m.csv", CSV)

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # chmod does not stop the root user that tests may run as
    with pytest.raises(DsctlError, match=r"m.csv cannot be read \(permission denied\)"):
        read_metadata(path)


@pytest.mark.parametrize(
    ("columns", "name", "hint"),
    [
        (("image", "promt"), "prompt", "rename the column 'promt' to 'prompt'"),
        (("image", "Prompt"), "prompt", "rename the column 'Prompt' to 'prompt'"),
        (("a.png", "a red ball"), "image", "must name the columns: add 'image'"),
    ],
)
def test_a_missing_column_names_the_columns_there_are_and_the_near_miss(columns, name, hint):
    with pytest.raises(DsctlError) as caught:
        Metadata(Path("m.csv"), columns, (), ()).require_columns([name])
    assert caught.value.problem.startswith(f"m.csv has no column {name!r}")
    assert all(repr(column) in caught.value.problem for column in columns)
    assert hint in caught.value.hint


SEPARATED = {
    "semicolons": (b'image;prompt\na.png;a red, round ball\nb.png;"a; b"\n', ", separated by semicolons", "a; b"),
    "tabs": (b"image\tprompt\r\na.png\ta red, round ball\r\nb.png\ta; b\r\n", ", separated by tabs", "a; b"),
    "bars": (b"image|prompt\na.png|a red, round ball\nb.png|a; b\n", ", separated by bars", "a; b"),
    "commas": (b'image,prompt\na.png,"a red, round ball"\nb.png,a; b\n', "", "a; b"),
    "declared": (b"sep=;\r\nimage;prompt\r\na.png;a red, round ball\r\nb.png;x\r\n", ", separated by semicolons", "x"),
    "a bar in a name": (b'image,prompt,a|b\na.png,"a red, round ball",\nb.png,x,\n', "", "x"),
    "a comma in a name": (b"image;prompt;x,y\na.png;a red, round ball;\nb.png;x;\n", ", separated by semicolons", "x"),
}


@pytest.mark.parametrize("kind", SEPARATED)
def test_the_separator_of_a_csv_is_that_of_its_header(tmp_path, kind):
    data, layout, second = SEPARATED[kind]
    for mark in (b"", b"\xef\xbb\xbf"):
        metadata = read(tmp_path, "m.csv", mark + data)
        assert metadata.columns[:2] == ("image", "prompt")
        assert [row["prompt"] for row in metadata.rows] == ["a red, round ball", second]
        assert metadata.layout == layout
    assert tuple(metadata.lines) == ((3, 4) if kind == "declared" else (2, 3))


@pytest.mark.parametrize(
    ("data", "problem", "hint"),
    [
        (
            b"image;prompt\na.png;x;y\n",
            r"row 1 \(line 2\) has 3 cells, but the header has 2",
            'a.png;"a red; round ball"',
        ),
        (b"image\tprompt\na.png\n", "has 1 cells, but the header has 2", "or a tab for an empty one"),
        (b"image,a;b\na.png;x\nb.png\n", "has 1 cells, but the header has 2", "or a comma"),
        (b'image;prompt\na.png;"x\n', "cannot be read as csv", "put a text with a semicolon"),
    ],
)
def test_a_row_that_does_not_fit_its_separator_is_named(tmp_path, data, problem, hint):
    with pytest.raises(DsctlError, match=problem) as caught:
        read(tmp_path, "m.csv", data)
    assert hint in caught.value.hint


def test_metadata_is_found_in_a_folder_that_has_exactly_one(tmp_path):
    assert find_metadata(tmp_path) is None
    one = written(tmp_path, "metadata.jsonl", b"")
    assert find_metadata(tmp_path) == one
    written(tmp_path, "metadata.csv", CSV)
    with pytest.raises(DsctlError, match=r"several metadata files: metadata.csv, metadata.jsonl"):
        find_metadata(tmp_path)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "the cell is empty"),
        (" \n", "the cell is empty"),
        (None, "the cell is empty"),
        (7, "the value is the number 7, not text"),
        (float("nan"), "the value is the number nan, not text"),
        (True, "the value is true or false, not text"),
        (["a"], "the value is a list, not text"),
        ("\ud83d", "the text has a NUL character or an unpaired surrogate"),
    ],
)
def test_what_says_nothing_is_never_turned_into_text(value, problem):
    with pytest.raises(DsctlError, match=problem) as caught:
        text_cell(value)
    assert caught.value.hint
