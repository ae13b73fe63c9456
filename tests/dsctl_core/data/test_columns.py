"""Rows by column are the rows, whatever is in their cells, in about the bytes of their text."""

from __future__ import annotations

import datetime
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsctl_core.data.columns import CHUNK, Absent, Column, Rows
from dsctl_core.data.metadata import read_metadata
from dsctl_core.data.row_numbers import RowNumbers, joined

PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
CELLS = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
ROWS = st.lists(st.dictionaries(st.sampled_from(["image", "prompt", "c"]), CELLS), max_size=8)


@given(ROWS)
def test_rows_by_column_are_the_rows(rows):
    held = Rows.of(rows)
    assert list(held) == rows
    assert [[type(cell) for cell in row.values()] for row in held] == [
        [type(row[name]) for name in held.columns if name in row] for row in rows
    ]
    for number, row in enumerate(rows):
        for name in ("image", "prompt", "c"):
            assert held.cell(number, name) == row.get(name)
            assert held.has(number, name) == (name in row)
    for name in held.columns:
        whole = [row.get(name) for row in rows]
        for first, last in ((0, len(rows)), (1, len(rows)), (0, len(rows) - 1)):
            texts = held.texts(name, first, last) if first < last else None
            assert texts == (whole[first:last] if first < last and set(map(type, whole)) == {str} else None)
    assert Rows.of(rows).digest() == held.digest()


def test_objects_that_json_does_not_have_and_lone_surrogates_are_kept():
    cells = [datetime.date(2026, 1, 2), "\ud800", float("inf"), (1,), Absent, "é"]
    column = Column(cells)
    assert column[:] == cells
    assert type(column[3]) is tuple


def test_the_digest_tells_cells_apart_that_have_the_same_bytes():
    columns = [["ab", "c"], ["a", "bc"], ["abc"], ["1"], [1], [None], ["null"], [Absent]]
    assert len({Column(cells).digest() for cells in columns}) == len(columns)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_takes_less_than_100_bytes_a_row(kind: str, tmp_path: Path):
    count, path = 4 * CHUNK, tmp_path / f"t.{kind}"
    rows = [{"image": f"{number:07d}.png", "prompt": f"a small round ball {number}"} for number in range(count)]
    if kind == "csv":
        path.write_text("image,prompt\n" + "".join(f"{row['image']},{row['prompt']}\n" for row in rows))
    elif kind == "jsonl":
        path.write_text("".join(f'{{"image": "{row["image"]}", "prompt": "{row["prompt"]}"}}\n' for row in rows))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    read_metadata(path)  # what is imported on the way does not count
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    held = read_metadata(path)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert list(held.rows) == rows
    assert grown / count < 100


def test_row_numbers_are_the_list_of_repeats_without_its_memory():
    numbers = RowNumbers(range(5), [1, 3, 2, 1, 4])
    plain = [0, 1, 1, 1, 2, 2, 3, 4, 4, 4, 4]
    assert numbers == plain
    assert [numbers[place] for place in range(len(plain))] == plain
    assert numbers.without({1, 4}) == [0, 2, 2, 3]
    assert joined([numbers, RowNumbers(range(2))], [0, 5]) == [*plain, 5, 6]
    assert len(RowNumbers(range(5), [10**12] * 5)) == 5 * 10**12
