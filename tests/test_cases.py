"""A case that fails is found and named, and so is a case that is missing."""

from __future__ import annotations

import pytest

from tests.cases import try_each


def even(number: int) -> None:
    assert number % 2 == 0, f"{number} is odd"


def test_every_case_is_tried_and_every_failure_named():
    tried = []
    with pytest.raises(pytest.fail.Exception, match="2 of 4 cases failed") as caught:
        try_each([(0,), (1,), (2,), (3,)], lambda number: tried.append(number) or even(number))
    assert tried == [0, 1, 2, 3]
    assert "(1,):\n    AssertionError: 1 is odd" in str(caught.value)
    assert "(3,):\n    AssertionError: 3 is odd" in str(caught.value)


def test_a_failure_by_pytest_itself_and_any_error_are_failures_of_the_case():
    for check in (lambda _: pytest.fail("no"), lambda _: {}["missing"]):
        with pytest.raises(pytest.fail.Exception, match="1 of 1 cases failed"):
            try_each([("a",)], check)


def test_cases_that_are_missing_are_a_failure():
    try_each([(0,), (2,)], even, count=2)
    try_each([(0,), (2,)], even, at_least=2)
    for wanted in ({"count": 3}, {"at_least": 3}, {"count": 1}):
        with pytest.raises(AssertionError, match="2 cases"):
            try_each([(0,), (2,)], even, **wanted)
    with pytest.raises(AssertionError, match="0 cases"):
        try_each([], even)
