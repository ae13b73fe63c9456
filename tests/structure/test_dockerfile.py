"""The Dockerfile copies all that its installation reads, and nothing that is not there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def copied() -> list[str]:
    lines = re.findall(r"^COPY (.*)$", (REPOSITORY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    return [word for line in lines for word in line.split()[:-1]]


def test_what_the_image_is_built_from_is_there_and_is_all_that_the_build_reads():
    build = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    shared = [str(Path(file).parent) for file in build["shared-data"]]
    wanted = {"pyproject.toml", "constraints.txt", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    assert set(copied()) == wanted | set(build["packages"]) | set(shared)
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied())


def test_the_image_has_the_torch_of_the_constraints_and_extras_that_exist():
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    pattern = re.search(r"sed -n 's/\^(torch==.*?)/\\1/p' constraints.txt", text)
    assert pattern
    expression = pattern[1].replace("\\(", "(").replace("\\)", ")")
    constraints = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    assert len(re.findall(f"^{expression}$", constraints, re.MULTILINE)) == 1
    extras = re.search(r"^ARG EXTRAS=(.*)$", text, re.MULTILINE)
    assert extras and set(extras[1].split(",")) <= PROJECT["project"]["optional-dependencies"].keys()
