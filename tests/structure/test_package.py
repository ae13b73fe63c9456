"""The package declares what it imports, and its wheel has all that it needs: it runs where there is no checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.structure.graph import Sources, imports, read_sources

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).parents[2]
OWN = {"dsctl", "dsctl_core"}
# Newer Pythons have it as tomllib; pyproject.toml asks for it on the others only.
NOT_IMPORTED: set[str] = {"tomli"} if sys.version_info >= (3, 11) else set()
# What torch always brings.
WITH_TORCH = {"numpy"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(extras: bool) -> set[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    texts = list(project["dependencies"])
    if extras:
        tools = ("dev", "docs")
        texts += [text for name, of in project["optional-dependencies"].items() if name not in tools for text in of]
    return {normal(re.match(r"[A-Za-z0-9._-]+", text)[0]) for text in texts}  # type: ignore[index]


def undeclared(sources: Sources, known: set[str]) -> list[str]:
    """List the imports of packages that are neither of the standard library, nor ours, nor of `known` distributions."""
    distributions = packages_distributions()
    found = []
    for path, text in sources.items():
        for name in {name.split(".")[0] for name in imports(text)} - {""}:
            if name in sys.stdlib_module_names or name in OWN | WITH_TORCH:
                continue
            if not {normal(each) for each in distributions.get(name, [name])} & known:
                found.append(f"{path} imports {name}")
    return found


def test_every_package_that_is_imported_is_declared():
    sources = read_sources(REPOSITORY)
    assert len(sources) > 200
    optional = {"deepspeed", "tomli", "bitsandbytes", "prodigyopt", "lion-pytorch", "triton", "typing-extensions"}
    optional |= {"tensorboard", "wandb", "swanlab", "trackio"}  # trackers, which --track asks for by name
    assert undeclared(sources, declared(extras=True) | optional) == []


def test_an_undeclared_import_is_found_also_inside_a_function():
    assert undeclared({"dsctl_core/x.py": "def f():\n    import scipy.stats"}, {"torch"}) == [
        "dsctl_core/x.py imports scipy"
    ]


def unused(sources: Sources, known: set[str]) -> list[str]:
    """List the `known` distributions of which no module is imported."""
    distributions = packages_distributions()
    modules = {name.split(".")[0] for text in sources.values() for name in imports(text)}
    imported = {normal(each) for name in modules for each in distributions.get(name, [])}
    return sorted(known - imported)


def test_every_dependency_is_imported():
    # Not among what the tests install, or not imported by us: peft would import the first at every start, and fsspec
    # imports the other by the scheme of an address.
    wanted = declared(extras=True) - NOT_IMPORTED - {"bitsandbytes", "s3fs"}
    assert len(wanted) > 15
    assert unused(read_sources(REPOSITORY), wanted) == []


def test_a_dependency_that_is_not_imported_is_found_also_if_it_is_named():
    text = "import torch.nn\n# import pandas\nx = 'import pandas'"
    assert unused({"dsctl_core/x.py": text}, {"torch", "pandas"}) == ["pandas"]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    words = ["-m", "hatchling", "build", "-t", "sdist", "-d", str(folder)]
    subprocess.run([sys.executable, *words], cwd=REPOSITORY, check=True, capture_output=True, timeout=300)
    return next(folder.glob("dsctl-*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """A wheel that is built from the sdist, as where pip finds no wheel: so the sdist has all that it needs, too."""
    words = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [sys.executable, *words, "--wheel-dir", str(sdist.parent), str(sdist)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    return next(sdist.parent.glob("dsctl-*.whl"))


def test_an_sdist_has_what_the_tests_and_the_documentation_need(sdist: Path):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"Makefile", "Dockerfile", "constraints.txt", ".ci/run", "README.md", "LICENSE", "docs/man/dsctl.1"}
    wanted |= {"tests/conftest.py", "examples/ci/train.yml", "dsctl_core/report/templates/live.js"}
    assert wanted <= names
    assert not [name for name in names if name.startswith((".venv", "build/", ".git/", "runs/", "models/"))]


def test_a_wheel_has_templates_assets_and_types(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = ["dsctl/py.typed", "dsctl_core/py.typed", "dsctl_core/report/templates/run.html.j2"]
    wanted += ["dsctl_core/report/templates/style.css", "dsctl_core/assets/tiny/model_index.json"]
    assert [name for name in names if name.endswith(".data/data/share/man/man1/dsctl.1")]
    assert set(wanted) <= names
    packaged = [path for package in sorted(OWN) for path in (REPOSITORY / package).rglob("*") if path.is_file()]
    missing = {path.relative_to(REPOSITORY).as_posix() for path in packaged if "__pycache__" not in path.parts} - names
    assert missing == set()
    assert not [name for name in names if name.startswith(("tests/", "docs/"))]


def test_an_installed_wheel_generates_a_picture_without_the_checkout(wheel: Path, tmp_path: Path):
    """The wheel and nothing else of ours is importable; what it depends on is that of this environment."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    program = (
        "import sys, site; sys.path = [p for p in sys.path if 'site-packages' in p or 'python' in p.lower()];"
        f"sys.meta_path = [f for f in sys.meta_path if 'editable' not in type(f).__module__];"
        f"sys.path = [{str(tmp_path / 'site')!r}, *(p for p in sys.path if p != {str(REPOSITORY)!r})];"
        "import dsctl_core; print(dsctl_core.__file__, file=sys.stderr);"
        "from dsctl.app import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["infer", "--model", "tiny", "--prompt", "a robot", "--num-inference-steps", "2", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words, "--output", "robot.png", "--json"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site") in done.stderr
    assert json.loads(done.stdout)["files"] == ["robot.png"] and (tmp_path / "robot.png").is_file()
