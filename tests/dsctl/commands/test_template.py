"""Templates on the command line: trained, used, and refused where nobody trusts them."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.dsctl.running import Run
from tests.templates import BRIGHTNESS, write_template

Dsctl = Callable[..., Run]
SMALL = ["--height", 32, "--width", 48, "--num-inference-steps", 1, "--cfg-scale", 2, "--prompt", "a fox"]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A template and a dataset for it in the working folder, and nothing agreed to."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    write_template(Path("bright"))
    Path("data").mkdir()
    rows = []
    for number in range(2):
        Image.new("RGB", (48, 32), (100 * number, 50, 50)).save(f"data/{number}.png")
        rows.append({"image": f"{number}.png", "prompt": "a square", "template_inputs": {"scale": number / 2}})
    Path("data/metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def train(model: Path, out: str, *more: Any) -> list[Any]:
    words = ["train", "sft", "--model", model, "--dataset-base-path", "data", "--output-path", out, "--device", "cpu"]
    words += ["--template", "bright", "--trainable-models", "template_model", "--extra-inputs", "template_inputs"]
    return [*words, "--max-steps", 2, *more]


def infer(model: Path, out: str, *more: Any) -> list[Any]:
    return ["infer", "--model", model, *SMALL, "--device", "cpu", "--output", out, *more]


def pixels(file: str) -> bytes:
    return Image.open(file).tobytes()


def test_a_template_is_trained_and_steers_a_picture(dsctl: Dsctl, model: Path) -> None:
    result = dsctl(*train(model, "out", "--trust-template", "--json"))
    assert result.code == 0, result.err
    file = result.json["checkpoint"]
    given = ["--template", f"bright:{file}", "--trust-template", "--template-inputs", '{"scale": 0.9}']
    assert dsctl(*infer(model, "plain.png")).code == 0
    assert dsctl(*infer(model, "one.png", *given)).code == 0
    both = [*given, "--template", "bright", "--template-inputs", '{"scale": 0.1}']
    assert dsctl(*infer(model, "two.png", *both)).code == 0
    assert dsctl(*infer(model, "side.png", *given, "--negative-template-inputs", '{"scale": 0.1}')).code == 0
    assert len({pixels(name) for name in ("plain.png", "one.png", "two.png", "side.png")}) == 4
    about = json.loads(Image.open("two.png").text["parameters"])  # type: ignore[attr-defined]
    assert about["templates"] == [f"bright:{file}", "bright"]
    assert about["template_inputs"] == [{"scale": 0.9, "model_id": 0}, {"scale": 0.1, "model_id": 1}]


def test_a_cache_and_a_config_file_name_a_template_too(dsctl: Dsctl, model: Path) -> None:
    words = ["--model", model, "--dataset-base-path", "data", "--output-path", "cache", "--device", "cpu"]
    made = dsctl("cache", *words, "--template", "bright", "--trust-template", "--extra-inputs", "template_inputs")
    assert made.code == 0, made.err
    Path("run.toml").write_text('template = "bright"\ntrust_template = false\ntrainable_models = "template_model"\n')
    words = ["train", "--config", "run.toml", "--from-cache", "cache", "--output-path", "out", "--max-steps", 1]
    result = dsctl(*words, "--trust-template")
    assert result.code == 0, result.err
    Path("infer.toml").write_text('template = ["bright"]\ntemplate_inputs = [\'{"scale": 1}\']\n')
    assert dsctl(*infer(model, "a.png", "--config", "infer.toml", "--trust-template")).code == 0


def test_a_config_file_cannot_say_that_code_is_trusted(dsctl: Dsctl, model: Path) -> None:
    Path("bright/model.py").write_text(f"open('ran', 'w').close()\n{BRIGHTNESS}")
    Path("run.toml").write_text('template = "bright"\ntrust_template = true\ntrainable_models = "template_model"\n')
    Path("infer.toml").write_text('template = ["bright"]\ntrust_template = true\n')
    for words in (
        train(model, "out", "--config", "run.toml"),
        infer(model, "a.png", "--config", "infer.toml"),
        ["cache", "--config", "run.toml", "--output-path", "out"],
    ):
        error, hint = dsctl(*words).fault(2)
        assert "trust_template = true in" in error
        assert "--trust-template on the command line" in hint
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os; os._exit(0)", "with exit code 0"),
        ("import os; os._exit(7)", "with exit code 7"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "by SIGKILL"),
    ],
)
def test_code_that_ends_its_process_does_not_pass_the_check(dsctl: Dsctl, model: Path, code: str, how: str) -> None:
    Path("bright/model.py").write_text(f"{code}\n{BRIGHTNESS}")
    error, _ = dsctl("template", "check", "bright", "--trust-template", "--model", model).fault(1)
    assert error == f"bright/model.py: it ended the process {how} before the check was done"


def test_a_check_in_a_process_of_its_own_says_the_same_errors(dsctl: Dsctl, model: Path) -> None:
    Path("bright/model.py").write_text("1 / 0\n")
    error, hint = dsctl("template", "check", "bright", "--trust-template", "--model", model).fault(1)
    assert error == "bright/model.py, line 1: it cannot be run: ZeroDivisionError: division by zero"
    assert "correct that file" in hint
    assert "is not trusted" in dsctl("template", "check", "bright", "--model", model).fault(2)[0]


def test_code_that_nobody_trusts_does_not_run(dsctl: Dsctl, model: Path) -> None:
    Path("bright/model.py").write_text(f"open('ran', 'w').close()\n{BRIGHTNESS}")
    for words in (train(model, "out"), infer(model, "out/a.png", "--template", "bright")):
        problem, hint = dsctl(*words).fault(2)
        assert "bright/model.py is code that is not trusted (sha256" in problem
        assert "--trust-template" in hint
    assert not Path("ran").exists()
    assert not Path("out").exists()


class Terminal(io.StringIO):
    """A stream that a person sits at."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("answer", ["y", "no", ""])
def test_on_a_terminal_the_first_use_is_asked_about(
    dsctl: Dsctl, model: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    words = infer(model, "a.png", "--template", "bright", "--template-inputs", '{"scale": 0.5}')
    asked = dsctl(*words)
    assert f"{Path('bright').absolute()}/model.py is code" in asked.err
    assert "sha256 " in asked.err
    if answer != "y":
        assert asked.code == 1
        assert "bright/model.py was not run" in asked.err
        assert not Path("a.png").exists()
        return
    assert asked.code == 0, asked.err
    again = dsctl(*words)
    assert again.code == 0
    assert "is code" not in again.err


def test_a_templates_own_traceback_is_shown_only_on_demand(
    dsctl: Dsctl, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("bright/model.py").write_text(
        BRIGHTNESS.replace("        def shaped(", "        1 / 0\n\n        def shaped(")
    )
    words = infer(model, "a.png", "--template", "bright", "--trust-template", "--template-inputs", '{"scale": 0.5}')
    problem, _ = dsctl(*words).fault(1)
    assert "forward failed: ZeroDivisionError" in problem
    monkeypatch.setenv("DSCTL_DEBUG", "1")
    shown = dsctl(*words).err
    assert "Traceback" in shown
    assert "1 / 0" in shown


def test_negative_inputs_without_guidance_are_refused_before_anything_is_loaded(dsctl: Dsctl, model: Path) -> None:
    words = infer(model, "a.png", "--template", "bright", "--trust-template")
    words[words.index("--cfg-scale") + 1] = 1
    problem, _ = dsctl(*words, "--negative-template-inputs", "{}").fault(2)
    assert problem.startswith("--negative-template-inputs has no effect at --cfg-scale 1")


def test_a_template_is_begun_checked_trained_and_packed(dsctl: Dsctl, model: Path) -> None:
    given = ["--trust-template", "--model", model, "--template-inputs", '{"scale": 0.8}']
    assert dsctl("template", "init", "own", "--model", model).code == 0
    checked = dsctl("template", "check", "own", *given, "--json")
    assert checked.code == 0, checked.err
    assert (checked.json["no_gradient"], checked.json["changes_the_picture"]) == ([], True)
    file = dsctl(*train(model, "out", "--trust-template", "--json")).json["checkpoint"]
    words = ["template", "pack", "bright", "--checkpoint", file, "--output", "packed"]
    assert "is not trusted" in dsctl(*words).fault(2)[0]
    assert not Path("packed").exists()
    assert dsctl(*words, *given).code == 0
    use = ["--trust-template", "--template-inputs", '{"scale": 0.8}']
    assert dsctl(*infer(model, "a.png", "--template", f"bright:{file}", *use)).code == 0
    assert dsctl(*infer(model, "b.png", "--template", "packed", *use)).code == 0
    assert pixels("a.png") == pixels("b.png")
