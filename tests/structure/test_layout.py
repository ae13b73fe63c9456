"""Files stay short and described, tests stand where the code stands, and nothing is switched off."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
LONGEST = 400
MOST_OF_A_FAMILY = 700  # lines of code, without its control networks
MOST_OF_ITS_CONTROL = 350  # lines of code of the control networks that run on a family
CONTROL = ("control.py", "controlnets.py")
FOLDERS = ("dsctl", "dsctl_core", "tests", "benchmarks", "docs", "examples")
MODULES = sorted(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py"))


def too_long(text: str) -> bool:
    return text.count("\n") >= LONGEST


def switched_off(text: str) -> list[str]:
    """Return what keeps a test from running or from failing."""
    return re.findall(r"mark\.(?:skip|skipif|xfail)\b|pytest\.(?:skip|xfail|importorskip)\b", text)


def homeless_folders(tests: Path, repository: Path) -> list[str]:
    """List folders of tests whose code has no such folder."""
    folders = (path for package in ("dsctl", "dsctl_core") for path in (tests / package).rglob("*"))
    names = (path.relative_to(tests) for path in folders if path.is_dir() and path.name != "__pycache__")
    return [name.as_posix() for name in names if not (repository / name).is_dir()]


def test_every_folder_of_code_is_seen():
    assert {path.relative_to(REPOSITORY).parts[0] for path in MODULES} == set(FOLDERS)


def faults_of(path: Path) -> list[str]:
    """Say what is wrong with a module: its length, or that it does not say what it is for."""
    text = path.read_text(encoding="utf-8")
    found = [f"{text.count(chr(10))} lines"] if too_long(text) else []
    if (path.name != "__init__.py" or text.strip()) and not ast.get_docstring(ast.parse(text)):
        found.append("no docstring")
    return found


def test_a_module_is_short_and_says_what_it_is_for():
    assert len(MODULES) > 400
    found = {path.relative_to(REPOSITORY).as_posix(): faults_of(path) for path in MODULES}
    assert {name: faults for name, faults in found.items() if faults} == {}


def lines_of_code(text: str) -> int:
    """Count the lines that are not blank, a comment, or part of a docstring."""
    described: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            described.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    numbered = enumerate(map(str.strip, text.splitlines()), 1)
    return sum(bool(line) and not line.startswith("#") and number not in described for number, line in numbered)


def test_a_family_is_a_small_folder():
    assert lines_of_code('"""A."""\n\n# B\nx = """\nC"""\ndef f():\n    """D."""\n') == 3
    folders = [path for path in (REPOSITORY / "dsctl_core" / "families").iterdir() if (path / "family.py").is_file()]
    lines = {path: lines_of_code(path.read_text()) for each in folders for path in each.rglob("*.py")}
    found = {each.name: [0, 0] for each in folders}
    for path, count in lines.items():
        found[path.relative_to(REPOSITORY / "dsctl_core" / "families").parts[0]][path.name in CONTROL] += count
    assert len(found) >= 8
    too_much = {name: (own, control) for name, (own, control) in found.items() if own > MOST_OF_A_FAMILY}
    assert too_much == {name: each for name, each in found.items() if each[1] > MOST_OF_ITS_CONTROL} == {}


def test_tests_stand_where_the_code_stands():
    assert homeless_folders(REPOSITORY / "tests", REPOSITORY) == []


def test_no_test_is_switched_off():
    here = Path(__file__).resolve()
    tests = [path for path in MODULES if "tests" in path.relative_to(REPOSITORY).parts and path.resolve() != here]
    assert {path.name: switched_off(path.read_text(encoding="utf-8")) for path in tests} == {p.name: [] for p in tests}


def test_a_long_file_a_homeless_test_and_a_switched_off_test_are_found(tmp_path: Path):
    assert too_long("\n" * LONGEST)
    assert not too_long("\n" * (LONGEST - 1))
    (tmp_path / "a.py").write_text("import os\n" * LONGEST, encoding="utf-8")
    assert faults_of(tmp_path / "a.py") == [f"{LONGEST} lines", "no docstring"]
    (tmp_path / "tests" / "dsctl_core" / "helpers").mkdir(parents=True)
    assert homeless_folders(tmp_path / "tests", tmp_path) == ["dsctl_core/helpers"]
    assert switched_off("@pytest.mark.skipif(True)") == ["mark.skipif"]
