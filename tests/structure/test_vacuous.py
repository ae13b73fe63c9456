"""No test may pass because it asserted nothing: one whose assertions all stand in loops needs one that does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.structure.vacuous import may_assert_nothing

TESTS = Path(__file__).parents[1]


def test_every_test_asserts_something_for_certain():
    modules = sorted(TESTS.rglob("test_*.py"))
    assert len(modules) > 100
    found = {path.relative_to(TESTS).as_posix(): may_assert_nothing(path.read_text("utf-8")) for path in modules}
    assert {name: tests for name, tests in found.items() if tests} == {}


VACUOUS = {
    "a loop over what a function returns": "for x in found(): assert x",
    "a loop in a loop": "for x in (1, 2):\n        for y in x: assert y",
    "a filtered list": "for x in [y for y in (1, 2) if y > 5]: assert x",
    "an empty list": "for x in []: assert x",
    "a range without numbers": "for x in range(3, 3): assert x",
    "files of a folder": "for path in folder.iterdir(): assert path.is_file()",
    "all of what may be nothing": "assert all(x > 0 for x in found())",
    "pairs of which one side may be nothing": "for a, b in zip((1, 2), found()): assert a == b",
    "a while": "while waiting(): assert ready()",
    "a helper that asserts in a loop": "check(found())",
    "a name that is bound twice": "rows = [1]; rows = found()\n    for row in rows: assert row",
}
CERTAIN = {
    "an assertion before the loop": "rows = found(); assert rows\n    for row in rows: assert row",
    "a loop over a literal": "for x in (1, 2): assert x",
    "a constant of the module": "for name, x in ROWS.items(): assert x",
    "equal lengths": "for a, b in zip((1, 2), found(), strict=True): assert a == b",
    "an error that must come": "with pytest.raises(ValueError): found()",
    "all of a literal": "assert all(x > 0 for x in (1, 2))",
    "an assertion that the loop's head calls": "for x in checked(3): use(x)",
    "a range of numbers": "for x in range(3): assert x",
    "a list made of a literal": "rows = [y + 1 for y in ROWS]\n    for x in sorted(rows): assert x",
}
MODULE = """
ROWS = {"a": 1}

def check(rows):
    for row in rows: assert row

def checked(x):
    assert x
    return []

def test_it(folder):
    """


@pytest.mark.parametrize("body", VACUOUS.values(), ids=VACUOUS)
def test_a_test_that_may_assert_nothing_is_found(body: str):
    assert may_assert_nothing(MODULE + body + "\n") == ["test_it"]


@pytest.mark.parametrize("body", CERTAIN.values(), ids=CERTAIN)
def test_a_test_that_asserts_for_certain_is_not_found(body: str):
    assert may_assert_nothing(MODULE + body + "\n") == []
