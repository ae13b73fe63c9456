"""`dsctl dataset validate`: every mistake is named, nothing is touched, and a clean dataset is called clean."""

from __future__ import annotations

import builtins
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.dsctl.commands.bad_datasets import BAD
from tests.dsctl.commands.spoiled import Bad, die, good, noise, row
from tests.dsctl.refusing import refused, words, written
from tests.dsctl.running import Dsctl

NAMES = sorted(BAD)
ERRORS = sorted(name for name, bad in BAD.items() if bad.level == "error" and bad.seen_by_train)
FIELDS = {"kind", "level", "message", "hint", "row", "file", "dataset"}


@pytest.fixture(autouse=True)
def _good() -> None:
    good(Path("data"))


def test_there_are_as_many_kinds_as_were_asked_for():
    assert len(BAD) >= 39


@pytest.mark.parametrize("name", NAMES)
def test_a_mistake_is_one_line_with_its_place_and_a_remedy_and_nothing_is_touched(dsctl: Dsctl, name: str):
    bad: Bad = BAD[name]
    bad.spoil(Path("data"))
    before = written() if "circle" not in name else {}
    run = dsctl("dataset", "validate", "data", "--json", *bad.options)
    assert written() == before or "circle" in name
    assert run.code == (1 if bad.level == "error" else 0)
    assert "Traceback" not in run.err
    problems = run.json["problems"]
    matching = [problem for problem in problems if bad.says in problem["message"]]
    assert len(matching) == 1, problems
    (problem,) = matching
    assert set(problem) == FIELDS
    assert (problem["kind"], problem["level"]) == (bad.kind, bad.level)
    assert bad.remedy in problem["hint"]
    assert "\n" not in problem["message"] + problem["hint"]
    assert run.json["summary"]["problems_by_kind"][bad.kind] >= 1


# A column of reference pictures is refused before its files are looked at, by a model that reads none.
@pytest.mark.parametrize("name", [name for name in ERRORS if "image,edit_image" not in BAD[name].options])
def test_training_refuses_the_same_before_it_loads_or_writes_anything(dsctl: Dsctl, model: Path, name: str):
    bad: Bad = BAD[name]
    bad.spoil(Path("data"))
    options = [] if "--model" in bad.options else bad.options
    if "circle" in name:
        error, hint = dsctl(*words("train", model), *options).fault(1)
        assert not Path("out").exists()
    else:
        error, hint = refused(lambda: dsctl(*words("train", model), *options), 1)
    assert bad.says in error
    assert bad.remedy in hint


@pytest.mark.parametrize("name", [name for name in NAMES if BAD[name].level == "warning"])
def test_a_warning_is_an_error_when_one_is_strict(dsctl: Dsctl, name: str):
    BAD[name].spoil(Path("data"))
    assert dsctl("dataset", "validate", "data", "--strict", *BAD[name].options).code == 1


def test_a_file_that_may_not_be_read_is_named(dsctl: Dsctl, monkeypatch: pytest.MonkeyPatch):
    real = io.open

    def read(path: Any, *given: Any, **how: Any) -> Any:
        if str(path).endswith("b.png"):  # chmod does not stop the root user that tests may run as
            raise PermissionError(13, "Permission denied")
        return real(path, *given, **how)

    for module in (io, builtins):  # for paths, and for all others
        monkeypatch.setattr(module, "open", read)
    (problem,) = dsctl("dataset", "validate", "data", "--json").json["problems"]
    assert (problem["kind"], problem["row"], problem["file"]) == ("unreadable file", 2, "data/b.png")
    assert "row 2 (line 3), image 'b.png': data/b.png cannot be read (permission denied)" in problem["message"]
    assert problem["hint"] == "chmod u+r data/b.png"


def test_a_size_that_does_not_divide_is_a_wrong_command(dsctl: Dsctl):
    error, hint = dsctl("dataset", "validate", "data", "--height", "100", "--width", "100").fault(2)
    assert "height 100" in error
    assert "96 and 112" in hint
    Image.new("RGB", (100, 100), "red").save("data/e.png")
    row("e.png,red")(Path("data"))
    assert dsctl("dataset", "validate", "data", "--json").json["summary"]["buckets"]["96x96"] == 1


def test_a_clean_dataset_is_called_clean_and_described(dsctl: Dsctl):
    run = dsctl("dataset", "validate", "data", "--model", "tiny", "--bucket-resolutions", "64", "--json")
    assert (run.code, run.json["rows"], run.json["problems"]) == (0, 4, [])
    summary = run.json["summary"]
    assert (summary["errors"], summary["warnings"], summary["files"]) == (0, 0, 4)
    assert summary["resolutions"] == {"96x64": 4}
    assert summary["buckets"] == {"80x48": 4}
    assert summary["caption_words"] == {"min": 1, "median": 2, "mean": 1.8, "max": 2}
    # 16 channels of 10 x 6 latents for each of 4 pictures, and 4 prompts of 7 tokens or so, 2 bytes a number
    assert summary["cache_bytes"] > 4 * 16 * 10 * 6 * 2
    assert summary["file_bytes"] == sum(path.stat().st_size for path in Path("data").glob("*.png"))


def test_people_get_the_same_as_text(dsctl: Dsctl):
    run = dsctl("dataset", "validate", "data")
    assert run.code == 0
    assert run.out.splitlines()[0] == "4 rows in a table metadata.csv of 4 rows"
    assert run.out.splitlines()[-1] == "no problem found"
    for _ in range(25):
        row("gone.webp,x")(Path("data"))
    run = dsctl("dataset", "validate", "data")
    assert run.code == 1
    lines = run.out.splitlines()
    at = lines.index("missing file: 25")
    assert lines[at + 1].startswith(
        "  error: data/metadata.csv row 5 (line 6), image 'gone.webp': data/gone.webp does not"
    )
    assert lines[at + 1].endswith("(check the file name, or remove the row)")
    assert lines[at + 21] == "  ... and 5 more; --json and --report show all"
    assert lines[-1] == "25 errors, 24 warnings"


def test_a_table_can_be_given_in_place_of_its_folder(dsctl: Dsctl):
    Path("data/metadata.csv").rename("data/other.csv")
    assert dsctl("dataset", "validate", "data/other.csv", "--json").json["rows"] == 4
    assert dsctl("dataset", "validate", "data", "--metadata", "data/other.csv", "--json").json["rows"] == 4


def test_several_datasets_are_checked_with_the_settings_of_each(dsctl: Dsctl):
    good(Path("more"))
    for name in ("a", "b"):
        Path(f"more/{name}.png").unlink()
    Path("bare").mkdir()
    Image.effect_noise((64, 64), 50).convert("RGB").save("bare/x.png")
    Path("all.toml").write_text(
        '[[dataset]]\npath = "data"\nheight = 32\nwidth = 32\n'
        '[[dataset]]\npath = "more"\nname = "second"\n'
        '[[dataset]]\npath = "bare"\ncaption = "a thing"\nregularization = true\n'
    )
    run = dsctl("dataset", "validate", "all.toml", "--model", "tiny", "--json", "--report", "out.html")
    assert (run.code, run.json["rows"]) == (1, 9)
    found = run.json["problems"]
    assert {(each["dataset"], each["kind"], each["row"]) for each in found} == {
        ("second", "missing file", 1),
        ("second", "missing file", 2),
    }
    assert all(each["message"].startswith("second: more/metadata.csv row") for each in found)
    assert run.json["summary"]["buckets"] == {"32x32": 4, "96x64": 2, "64x64": 1}
    assert "second" in Path("out.html").read_text()
    error, hint = dsctl("dataset", "validate", "all.toml", "--metadata", "data/metadata.csv").fault(2)
    assert "--metadata has no effect on all.toml" in error
    Path("all.toml").write_text('path = "data"\n')
    assert "has the key 'path' beside its tables" in dsctl("dataset", "validate", "all.toml").fault(2)[0]


def test_masks_are_compared_with_their_pictures_and_not_with_one_another(dsctl: Dsctl):
    lines = ["image,mask,prompt"]
    for number, size in enumerate([(96, 64), (48, 32), (64, 64), (96, 64)]):
        Image.new("L", size, 255).save(f"data/m{number}.png")
        lines.append(f"{'abcd'[number]}.png,m{number}.png,a prompt {number}")
    Path("data/metadata.csv").write_text("\n".join(lines) + "\n")
    words = ("dataset", "validate", "data", "--data-file-keys", "image,mask", "--json")
    fixed = dsctl(*words, "--height", "32", "--width", "32").json
    assert [(each["row"], each["kind"]) for each in fixed["problems"]] == [(3, "size")]
    assert "another shape" in fixed["problems"][0]["message"]
    assert fixed["summary"]["buckets"] == {"32x32": 4}
    assert [each["row"] for each in dsctl(*words).json["problems"] if each["kind"] == "size"] == [2, 3]
    mask = Image.new("L", (96, 64))
    for white, rows in ((0, [1]), (255, [])):  # one pixel is enough
        mask.putpixel((33, 7), white)
        mask.save("data/m0.png")
        black = [each for each in dsctl(*words).json["problems"] if "black mask" in each["message"]]
        assert [each["row"] for each in black] == rows
        assert dsctl(*words).json["problems"] == dsctl(*words, "--recheck").json["problems"]


def test_a_dataset_that_is_not_there_is_an_error(dsctl: Dsctl):
    error, hint = dsctl("dataset", "validate", "nowhere").fault(1)
    assert "nowhere does not exist" in error
    assert hint
    assert "PATH is missing" in dsctl("dataset", "validate").fault(2)[0]


def test_the_report_stands_alone(dsctl: Dsctl):
    for name in ("10x10", "truncated jpeg", "same bytes"):
        BAD[name].spoil(Path("data"))
    row('a.png,"<script>alert(1)</script>"')(Path("data"))
    run = dsctl("dataset", "validate", "data", "--report", "report.html")
    assert run.code == 1
    page = Path("report.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") >= 5, "the rows with problems that can be shown, and a sample"
    assert "<script>" not in page
    assert "http" not in page.replace("https://host", "")
    for word in ("the picture is 10x10", "damaged or cut off", "has the same bytes as", "96x64", "Words in a caption"):
        assert word in page
    assert page.count("<tr>") == len(json.loads(dsctl("dataset", "validate", "data", "--json").out)["problems"]) + 1


@pytest.mark.parametrize(
    ("report", "code", "problem"),
    [
        ("report.pdf", 2, "'report.pdf', which is no page"),
        ("data/a.png/r.html", 1, "data/a.png is a file, so data/a.png/r.html cannot be in it"),
    ],
)
def test_a_report_that_cannot_be_is_refused_before_anything_is_decoded(
    dsctl: Dsctl, report: str, code: int, problem: str
):
    assert problem in dsctl("dataset", "validate", "data", "--report", report).fault(code)[0]


def test_all_cores_say_what_one_says(dsctl: Dsctl):
    for number in range(70):
        noise((32, 32), 100 + number).save(f"data/{number}.png")
        row(f"{number}.png,number {number}")(Path("data"))
    Path("data/30.png").write_bytes(b"")
    runs = [dsctl("dataset", "validate", "data", "--json", "--workers", workers) for workers in (1, 2)]
    assert runs[0].json == runs[1].json
    assert [problem["row"] for problem in runs[0].json["problems"]] == [35]


def test_a_process_that_is_killed_is_an_error_and_not_a_wait(dsctl: Dsctl, monkeypatch: pytest.MonkeyPatch):
    for number in range(70):
        row("a.png,x" if number < 5 else f"{number}.png,x", f"{number}.png", Path("data/a.png").read_bytes())(
            Path("data")
        )
    monkeypatch.setattr("dsctl_core.data.inspection_processes.inspect_all", die)
    error, hint = dsctl("dataset", "validate", "data", "--workers", "2").fault(1)
    assert "was killed" in error
    assert "--workers 1" in hint


def test_validating_imports_no_torch():
    code = (
        "import sys; from dsctl.app import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules; sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "dataset", "validate", "data", "--model", "tiny", "--report", "r.html"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
