"""The modules that take longest are run first; tests/longest.txt, measured by hand, names those that are there."""

from __future__ import annotations

from types import SimpleNamespace

from tests.conftest import LONGEST, REPOSITORY, pytest_collection_modifyitems


def test_every_module_that_is_named_is_there_and_the_longest_is_first():
    rows = [line.split() for line in LONGEST.read_text(encoding="utf-8").splitlines()]
    seconds = [int(number) for number, _ in rows]
    assert len(rows) > 10
    assert seconds == sorted(seconds, reverse=True)
    assert [name for _, name in rows if not (REPOSITORY / name).is_file()] == []
    assert len({name for _, name in rows}) == len(rows)


def test_modules_that_are_named_come_first_and_all_others_stay_as_they_were():
    first, second = (line.split()[1] for line in LONGEST.read_text(encoding="utf-8").splitlines()[:2])
    names = ["tests/b.py", second, "tests/a.py", first, second, "tests/b.py"]
    items = [SimpleNamespace(path=REPOSITORY / name, number=number) for number, name in enumerate(names)]
    pytest_collection_modifyitems(items)  # type: ignore[arg-type]
    assert [item.number for item in items] == [3, 1, 4, 0, 2, 5]


def test_the_makefile_keeps_that_order():
    (line,) = (line for line in (REPOSITORY / "Makefile").read_text().splitlines() if " -n $(WORKERS)" in line)
    assert "--dist loadscope --no-loadscope-reorder" in line
