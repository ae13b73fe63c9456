"""A template goes to a hub only when whoever gets it can use it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

REPO = "user/bright"


@pytest.fixture(autouse=True)
def packed(repository, monkeypatch, tmp_path):
    """The example's packed template in the working folder, and nothing agreed to."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    shutil.copytree(repository / "examples" / "template_brightness" / "brightness", "bright")
    return Path("bright")


def words(*more):
    return ("template", "upload", "bright", "--repo", REPO, *more)


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_packed_template_arrives_and_how_to_try_it_is_told(hub, dsctl, source):
    run = dsctl(*words("--target", source, "--trust-template", "--json"))
    assert run.code == 0, run.err
    there = hub.repos[f"models/{REPO}"]
    assert set(there) == {"README.md", "model.py", "model.safetensors"}
    assert all(content == Path("bright", name).read_bytes() for name, content in there.items())
    assert run.json["url"].endswith(REPO)
    assert run.json["try_it"] == [
        f"dsctl download {REPO} --source {source}",
        "dsctl infer --model tiny --prompt 'a cat' --template models/user/bright --trust-template "
        "--template-inputs '{\"scale\": 0.5}'",
    ]


BROKEN = {
    "nobody trusts it": (lambda: None, "is not trusted", 2),
    "no card": (lambda: Path("bright/README.md").unlink(), "has no README.md", 1),
    "a pickle": (lambda: Path("bright/a.pt").write_bytes(b"x"), "a.pt is a pickle", 1),
    "no weights": (
        lambda: Path("bright/model.py").write_text(
            Path("bright/model.py").read_text().replace('_PATH = "model.safetensors"', "_PATH = None")
        ),
        "has no weights of its own",
        1,
    ),
    "broken code": (lambda: Path("bright/model.py").write_text("import ("), "it cannot be run: SyntaxError", 1),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_nobody_could_use_is_not_uploaded(hub, dsctl, kind):
    breaks, said, code = BROKEN[kind]
    breaks()
    trust = [] if kind == "nobody trusts it" else ["--trust-template"]
    run = dsctl(*words("--target", "huggingface", *trust))
    assert said in run.fault(code)[0]
    assert f"models/{REPO}" not in hub.repos


def test_a_dry_run_uploads_nothing(hub, dsctl):
    run = dsctl(*words("--target", "huggingface", "--trust-template", "--dry-run", "--json"))
    assert (run.code, run.json["uploaded"]) == (0, False)
    assert f"models/{REPO}" not in hub.repos
