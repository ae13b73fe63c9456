"""JSON is read strictly, and checked against a type: the message names the place and the field."""

from __future__ import annotations

import json
from typing import Annotated

import pytest
from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files.json import checked, decode_json, parse_json, read_json, read_json_as, read_line
from dsctl_core.options.config_file import read_toml

BAD_VALUES = [
    ("[" * 100_000, "W: it is nested more than 64 levels deep"),
    ("[" * 65 + "]" * 65, "W: [0][0][0] is nested more than 64 levels deep"),
    ('{"a": {"b": 1, "b": 2}}', "W: a has the key 'b' twice"),
    ('{"a": [1, NaN]}', "W: a[1] is nan, not a finite number of 64 bits"),
    ('{"a.b": -1e400}', "W: ['a.b'] is -inf, not a finite number of 64 bits"),
    ('{"a": 18446744073709551616}', "W: a is a whole number beyond 64 bits"),
    ("9" * 5000, "W: it has a whole number beyond 64 bits"),
    ('["\\ud800"]', "W: [0] has an unpaired surrogate, which is no text"),
    ("{", "W is not valid JSON: Expecting property name"),
    (b"\xff\xfe{", "W is not UTF-8 text: "),
]


@pytest.mark.parametrize(("text", "message"), BAD_VALUES, ids=[message[:40] for _, message in BAD_VALUES])
def test_what_json_must_not_hold_is_named(text, message):
    with pytest.raises(DsctlError) as caught:
        parse_json(text, "W")
    assert caught.value.problem.startswith(message)
    assert caught.value.hint


def test_what_is_allowed_is_read_unchanged():
    for text in (
        "[" * 64 + "]" * 64,
        '{"a": 18446744073709551615, "b": [1.5, null, true, "\\u00e9\\ud83d\\ude00"]}',
        "-1",
    ):
        assert decode_json(text) == json.loads(text)
    assert decode_json("[1e400]", finite=False) == [float("inf")]


class Part(TypedDict):
    bytes: Annotated[int, Field(ge=0)]


class Shape(TypedDict):
    name: str
    rate: NotRequired[float]
    on: NotRequired[bool]
    files: Annotated[dict[str, Part], Field(min_length=1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 1}, "W: name is the number 1, not text"),
        ({"name": None}, "W: name is null, not text"),
        ({"rate": "1"}, "W: rate is the text '1', not a number"),
        ({"rate": True}, "W: rate is true, not a number"),
        ({"on": 1}, "W: on is the number 1, not true or false"),
        ({"files": []}, "W: files is a list, not an object"),
        ({"files": {}}, "W: files is empty"),
        ({"files": {"x.bin": {}}}, "W: it lacks the field files['x.bin'].bytes"),
        ({"files": {"x": {"bytes": 1.0}}}, "W: files.x.bytes is the number 1.0, not a whole number"),
        ({"files": {"x": {"bytes": -1}}}, "W: files.x.bytes is the number -1, which should be greater than or equal"),
    ],
)
def test_a_structure_of_another_type_is_named_by_its_field(change, message):
    good = {"name": "a", "rate": 1, "on": False, "files": {"x": {"bytes": 1}}, "other": [1]}
    assert checked(good, Shape, "W") is good
    with pytest.raises(DsctlError) as caught:
        checked({**good, **change}, Shape, "W")
    assert caught.value.problem.startswith(message)


def test_a_file_is_named_and_a_byte_order_mark_is_no_fault(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b'\xef\xbb\xbf{"name": "a", "files": {"x": {"bytes": 1}}}')
    assert read_json_as(file, Shape)["name"] == "a"
    file.write_text("[]")
    with pytest.raises(DsctlError, match=r"a\.json should hold a JSON object, and holds a list"):
        read_json(file)
    with pytest.raises(DsctlError, match="cannot be read: No such file"):
        read_json(tmp_path / "b.json")


def test_a_line_of_a_log_that_is_cut_off_is_none():
    assert read_line('{"step": 1}') == {"step": 1}
    assert [read_line(line) for line in ('{"st', "[1]", "", "[" * 100_000)] == [None] * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 100_000, "is nested too deep"),
        ("a = " + "[" * 70 + "]" * 70, "is nested more than 64 levels deep"),
        ("a = [2026-01-01]", r"a\[0\] in .* is a date, which no option takes"),
        ("a = [{b = 1}]", r"a\[0\] in .* is a table, which no option takes"),
        ("a = 99999999999999999999", "a is a whole number beyond 64 bits"),
    ],
)
def test_toml_is_bounded_too(tmp_path, text, message):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_toml(tmp_path / "run.toml", "--config")
