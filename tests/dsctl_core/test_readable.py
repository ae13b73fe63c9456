"""Counts, bytes and seconds as people read them."""

from __future__ import annotations

import pytest

from dsctl_core.readable import counted, readable_bytes, readable_duration


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1 kB"),
        (12_345, "12.3 kB"),
        (999_999, "1 MB"),
        (5.67e9, "5.67 GB"),
        (2.5e15, "2.5e+03 TB"),
    ],
)
def test_bytes_have_three_digits_and_a_decimal_unit(count: float, text: str):
    assert readable_bytes(count) == text


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("file",), "0 files"),
        (1, ("file",), "1 file"),
        (2, ("file",), "2 files"),
        (1, ("entry", "entries"), "1 entry"),
        (3, ("entry", "entries"), "3 entries"),
    ],
)
def test_only_one_is_in_the_singular(number: int, words: tuple[str, ...], text: str):
    assert counted(number, *words) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (0.423, "0.42 s"), (1, "0:01"), (9, "0:09"), (754, "12:34"), (3723, "1:02:03"), (-5, "0:00")],
)
def test_a_duration_is_written_as_a_clock_shows_it_from_a_second_on(seconds: float, text: str):
    assert readable_duration(seconds) == text
