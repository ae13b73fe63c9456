"""Parquet tables with the files in them: rows without a file, and parts that are missing."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from dsctl_core.commands.dataset import validate
from dsctl_core.data.check import usable_part
from dsctl_core.data.dataset import UnifiedDataset
from dsctl_core.data.problems import DataError
from dsctl_core.options import DatasetValidateOptions
from tests.archives import PICTURES, shard, table_of


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("bare", [True, False])
def test_a_parquet_row_without_a_file_is_a_problem_of_that_row(tmp_path: Path, bare: bool, statistics: bool) -> None:
    cells = [
        {"bytes": PICTURES[0], "path": "a.png"},
        None,
        {"bytes": None, "path": None},
        {"bytes": None, "path": "b.png"},
    ]
    cells += [{"bytes": PICTURES[1], "path": None}] * 3
    column = [each and each["bytes"] for each in cells] if bare else cells
    table = pyarrow.table({"image": column, "prompt": [f"ball {n}" for n in range(len(cells))]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2, write_statistics=statistics)
    found = validate(DatasetValidateOptions(path=tmp_path))
    wrong = [(each.row, each.kind) for each in found.found.problems if each.level == "error"]
    assert wrong == [(n, "missing file") for n in (2, 3, 4)]
    assert ("the path 'b.png' and no bytes" in " ".join(found.lines())) is not bare
    kept, problems = usable_part(UnifiedDataset(tmp_path))
    assert ([row["prompt"] for row in kept], len(problems)) == (["ball 0", "ball 4", "ball 5", "ball 6"], 3)


def test_a_column_of_lists_of_files_is_said_to_be_one(tmp_path: Path) -> None:
    cells = [[{"bytes": PICTURES[0], "path": "a.png"}]]
    pyarrow.parquet.write_table(pyarrow.table({"image": cells, "prompt": ["a ball"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="image .*: the column has cells of the type 'list<.*neither text nor a file"):
        UnifiedDataset(tmp_path)[0]


PARTS = {
    "train-00000-of-00002": "1 of the 2 files train-...-of-00002: train-00001-of-00002.parquet is missing",
    "train-00001-of-00002": "train-00000-of-00002.parquet is missing",
    "train-00000-of-00003 train-00002-of-00003": "train-00001-of-00003.parquet is missing",
    "train-00000-of-00002-0123456789abcdef": "1 of the 2 files",
    "train-00000-of-00002 train-00001-of-00003": "is missing",
    "train-00000-of-00001-01234567 train-00000-of-00001-89abcdef": "are both part 00000 of 00001",
    "test-00000-of-00002": "test-00001-of-00002.parquet is missing",
    "train_sft-0-of-2": "train_sft-1-of-2.parquet is missing",
    "train-00001-of-00001 test-00000-of-00009": "",
    "train-00000-of-00002 train-00001-of-00002": "",
    "train-00000-of-00001-0123456789abcdef": "",
    "a b": "",
}


@pytest.mark.parametrize("names", PARTS)
@pytest.mark.parametrize("suffix", [".parquet", ".tar"])
def test_a_file_that_the_names_of_the_others_tell_of_is_missed(tmp_path: Path, names: str, suffix: str) -> None:
    if suffix == ".tar" and "test-00000-of-00009" in names:
        return  # tars have no splits
    for number, name in enumerate(names.split()):
        content = table_of(range(number, number + 1)) if suffix == ".parquet" else shard(range(number, number + 1))
        (tmp_path / f"{name}{suffix}").write_bytes(content)
    if PARTS[names]:
        with pytest.raises(DataError, match=re.escape(PARTS[names].replace(".parquet", suffix))):
            UnifiedDataset(tmp_path)
    else:
        UnifiedDataset(tmp_path)


def test_the_splits_that_are_left_out_are_named(tmp_path: Path) -> None:
    for number, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")):
        (tmp_path / f"{name}.parquet").write_bytes(table_of(range(number, number + 1)))
    notes = UnifiedDataset(tmp_path).notes()
    assert "1 file was left out: 1 .parquet of the split 'test'" in notes
    assert "in 2 Parquet files" in notes[0]


def test_tables_of_other_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(table_of(range(2)))
    (tmp_path / "b.parquet").write_bytes(table_of(range(2), score=[1, 2]))
    with pytest.raises(DataError, match=r"b\.parquet has other columns than .*a\.parquet"):
        UnifiedDataset(tmp_path)
