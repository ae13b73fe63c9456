"""Nothing from outside reaches a terminal as anything but text: names of files, prompts, hubs, log records."""

from __future__ import annotations

import io
import json
import logging
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsctl import out
from dsctl.printable import encodable, printable
from dsctl.progress import Bar, Lines
from dsctl.transfers import TransferBars, TransferLines
from dsctl_core.errors import DsctlError
from tests.cases import try_each
from tests.dsctl.running import Dsctl

HOSTILE = (
    "\x1b[2J\x1b[31mred\x1b[0m",  # clear the screen
    "\x1b]0;title\x07",
    "a\rerror: fake",
    "a\nerror: fake",
    "a\x0bb\x0cc\x85d\u2028e\u2029f",
    "\x9b31m",  # CSI of eight bits
    "\u202egnp.\u202cexe",  # turned round
    "\u2066a\u2069\u200e\u200f\u061c",
    "\ufeffmark\u00ad",
    "half \udcff of a pair \ud800",
    "[red]markup[/red] [/] :cat:",
    "\x00\x08\x7f",
    "{0} %s {task.description}",
)
TEXT = st.text(st.characters() | st.sampled_from("".join(HOSTILE)), max_size=40)
BAD = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def plain(line: str) -> bool:
    return not any(unicodedata.category(each) in BAD and each not in "\u200c\u200d" for each in line)


@given(TEXT)
def test_any_text_becomes_one_line_of_visible_characters(text: str):
    shown = printable(text)
    assert plain(shown)
    assert printable(shown) == shown
    assert len(shown.splitlines()) <= 1
    visible = "".join(each for each in text if plain(each))
    assert printable(visible) == visible
    encodable(shown, "ascii").encode("ascii")


def test_what_people_write_stays_as_it_is():
    for text in ("naïve café", "写真 東京.png", "قطة", "👩\u200d🚀.png", "می\u200cخواهم", "a  b", "c:\\x1b", ""):
        assert printable(text) == text


def bar_of(show: Callable[[Bar], None]) -> Callable[[str], None]:
    def run(text: str) -> None:
        bar = Bar()
        show(bar)
        bar.finish()

    return run


def shown_as_note(text: str) -> None:
    out.note(f"note {text}")


def shown_as_result(text: str) -> None:
    out.result(f"Title {text}", file=Path(f"f{text}".replace("\0", "")), several=[text], counts={text: 1})


def shown_as_lines(text: str) -> None:
    out.show({"a": text}, [text, *out.columns([(text, "b"), ("a", text)])])


def shown_as_error(text: str) -> None:
    out.error(f"no such file: {text}", f"did you mean {text}?")


def shown_as_trace(text: str) -> None:
    out.trace(text)


def shown_as_record(text: str) -> None:
    logging.getLogger("dsctl_core.hub").warning("the hub says %s", text)


def shown_as_job(text: str) -> None:
    display = out.progress()
    display.start(f"Job {text}", 3)
    display.advance(picture=text)
    display.note(text)
    display.finish()


def shown_as_transfer(text: str) -> None:
    display = out.transfers()
    display.start(f"Downloading {text}", {text: 10, "other": 5})
    display.advance(text, 5)
    display.note(text)
    display.finish()


SHOWN = (
    *(shown_as_note, shown_as_result, shown_as_lines, shown_as_error, shown_as_trace, shown_as_record),
    *(shown_as_job, shown_as_transfer),
)


@pytest.mark.parametrize("terminal", [False, True])
def test_every_way_of_printing_escapes(terminal: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    # pytest would keep what is logged for its report, which no text with a lone surrogate can be in.
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [each for each in root.handlers if "pytest" not in type(each).__module__])

    def check(show: Callable[[str], None], text: str) -> None:
        stdout, stderr = io.StringIO(), io.StringIO()
        with monkeypatch.context() as patches:
            patches.setattr(stderr, "isatty", lambda: terminal)
            patches.setattr(sys, "stdout", stdout)
            patches.setattr(sys, "stderr", stderr)
            with out.session([]):
                show(text)
        seen = stdout.getvalue() + without_own_commands(stderr.getvalue())
        assert all(plain(line) for line in seen.split("\n")), ascii(seen)
        if show is not shown_as_trace:  # which has many lines, and is shown to who asks for it
            assert not [line for line in seen.split("\n") if line.startswith("error: fake")]
        seen.encode()
        if "[red]" in text and (show is not shown_as_job or terminal):
            assert "[red]markup[/red]" in seen and ":cat:" in seen

    try_each([(show, text) for show in SHOWN for text in HOSTILE], check, count=len(SHOWN) * len(HOSTILE))


def without_own_commands(written: str) -> str:
    """Take away the commands with which rich shows a bar: they move and hide the cursor, and dim the pace."""
    for command in ("\x1b[?25l", "\x1b[?25h", "\x1b[2K", "\x1b[1A", "\r", "\x1b[2m", "\x1b[0m"):
        written = written.replace(command, "")
    return written


def test_lines_and_bars_are_what_a_session_shows(monkeypatch: pytest.MonkeyPatch):
    for terminal, kinds in ((False, (Lines, TransferLines)), (True, (Bar, TransferBars))):
        with out.session([]):
            monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
            assert (type(out.progress()), type(out.transfers())) == kinds


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_on_the_command_line_is_one_plain_error(dsctl: Dsctl, text: str):
    name = f"nope{text}".replace("\0", "")
    for words in (
        ["lora", "info", name],
        ["report", name],
        ["dataset", "validate", name],
        ["infer", f"--model={name}", "--prompt=a"],
        ["template", "check", name],
        [name],
        ["train", f"--{name}"],
    ):
        run = dsctl(*words)
        assert run.code in (1, 2)
        assert run.out == "" or words[0] == "dataset"
        assert plain((run.out + run.err).replace("\n", "")), ascii(run.err)
        assert [line for line in run.err.splitlines() if line.startswith("error: ")] in ([], run.err.splitlines()[:1])


def test_with_json_an_error_and_a_result_are_ascii(capsys: pytest.CaptureFixture[str]):
    with out.session(["--json"]):
        out.error(HOSTILE[0], HOSTILE[6])
        out.show({"a": "".join(HOSTILE)}, [])
    first, second = capsys.readouterr().out.splitlines()
    assert json.loads(first)["error"] == printable(" ".join(HOSTILE[0].split()))
    assert json.loads(second)["a"] == "".join(HOSTILE)
    assert (first + second).isascii()


def test_a_terminal_of_another_encoding_gets_escapes_instead_of_an_error(monkeypatch: pytest.MonkeyPatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with out.session([]):
        out.result("写真", file="é")
    stream.flush()
    assert stream.buffer.getvalue() == b"\\u5199\\u771f\n  file  \\xe9\n"  # type: ignore[attr-defined]


def test_a_warning_of_a_library_is_escaped_too(dsctl: Dsctl, monkeypatch: pytest.MonkeyPatch):
    import warnings

    def examine(options: object) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # in tests warnings are errors
            warnings.warn(HOSTILE[0], stacklevel=1)
        logging.getLogger("theirs").warning("%s", HOSTILE[3])
        raise DsctlError("end", hint="x")

    monkeypatch.setattr("dsctl_core.commands.doctor.examine", examine)
    run = dsctl("doctor", "--verbose")
    assert "\\x1b[2J" in run.err
    assert "a\\nerror: fake" in run.err
    assert plain(run.err.replace("\n", ""))
