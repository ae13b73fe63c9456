"""Print results to stdout, and progress, notes and errors to stderr. Only this module prints."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, TextIO

from dsctl import processes
from dsctl.printable import encodable, printable
from dsctl_core.errors import for_people, masked
from dsctl_core.progress import NoProgress, NoTransfers, Progress, Transfers

# Environment variables that silence other libraries, which read them when they are imported. Values that are set stay.
SILENCE = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "MODELSCOPE_LOG_LEVEL": "40",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TORCH_LOGS": "-torch.utils._pytree",  # which torchao, where it is installed, registers constants with
}
MUTE = (
    logging.NullHandler()
)  # with a handler on the root logger, logging does not print the records of other libraries to stderr


@dataclass
class Mode:
    """The output settings of this run."""

    json: bool = False
    quiet: bool = False
    progress: Progress | None = None
    transfers: Transfers | None = None


_mode: ContextVar[Mode] = ContextVar("mode")


@contextmanager
def session(words: Sequence[str]) -> Iterator[None]:
    """Set the output settings of one run. `--json` and `--quiet` in `words` apply even if parsing `words` fails."""
    flags = set(words[: words.index("--")] if "--" in words else words)
    token = _mode.set(Mode(json="--json" in flags, quiet="--quiet" in flags))
    library_logger, handler = logging.getLogger("dsctl_core"), _ShowRecords(logging.WARNING)
    library_logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        _finish()
        library_logger.removeHandler(handler)
        logging.getLogger().removeHandler(MUTE)
        logging.getLogger().removeHandler(OTHERS)
        _mode.reset(token)


def configure(*, json: bool, quiet: bool, verbose: bool) -> None:
    """Apply the flags that every command has; without --verbose, silence the warnings and logs of other libraries."""
    mode = _mode.get()
    mode.json, mode.quiet = json, quiet
    if verbose:
        warnings.showwarning = _show_warning  # type: ignore[assignment]  # file and line are not used
        logging.getLogger().addHandler(OTHERS)
    else:
        warnings.simplefilter("ignore")
        logging.getLogger().addHandler(MUTE)
        for name, value in SILENCE.items():
            os.environ.setdefault(name, value)


class _ShowRecords(logging.Handler):
    """Shows log records as notes: those of dsctl_core, or with --verbose those of other libraries."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        note(f"{record.levelname.lower()}: {record.getMessage()}")


OTHERS = _ShowRecords(logging.WARNING)
OTHERS.addFilter(lambda record: record.name.partition(".")[0] != "dsctl_core")  # which has its own handler


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
    note(f"{filename}:{lineno}: {category.__name__}: {message}")


def result(title: str, *, labels: Mapping[str, str] | None = None, **values: Any) -> None:
    """Show the result of a command: a title and its values, or with --json one object of the values.

    `labels` are the words for a value in the text, where its name does not say enough; "" leaves it out there.
    """
    called = {name: (labels or {}).get(name, name.replace("_", " ")) for name in values}
    rows = [(called[name], _text(value)) for name, value in values.items() if value is not None and called[name]]
    show(values, [title, *columns(rows, indent=2)])


def show(values: Mapping[str, Any], lines: Sequence[str]) -> None:
    """Print `values` as one JSON object with --json, else `lines`."""
    _finish()
    _print([json.dumps(values, default=_of_json)] if _mode.get().json else lines, sys.stdout)


def columns(rows: Sequence[Sequence[str]], *, indent: int = 0) -> list[str]:
    """Return `rows` as lines with aligned columns."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return [" " * indent + "  ".join(row).rstrip() for row in cells]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{number} in {name}" for name, number in value.items())
    return _of_json(value)


def _of_json(value: object) -> str:
    return for_people(str(value)) if isinstance(value, PurePath) else str(value)


def note(message: str) -> None:
    """Show one line on stderr, unless --quiet."""
    progress().note(for_people(message))


def ask(question: str, lines: Sequence[str]) -> bool | None:
    """Show `lines`, ask a question on the terminal and return whether the answer is yes; None without a terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or _mode.get().json:
        return None
    _finish()
    _print(lines, sys.stderr)
    print(f"{printable(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _to_stderr(line: str) -> None:
    _print([line], sys.stderr)


def _print(lines: Iterable[str], stream: TextIO) -> None:
    """Print lines, each of them on one line, and nothing in them that a terminal would take for a command."""
    text = "".join(f"{printable(line)}\n" for line in lines)
    print(encodable(text, stream.encoding), end="", file=stream, flush=True)


def error(problem: str, hint: str | None) -> None:
    """Show an error and its hint on stderr; with --json also as one object on stdout."""
    _finish()
    _show_fault("error: ", problem, hint)


def stopped(problem: str, hint: str | None) -> None:
    """Show that the command ended because it was told to, and how to go on; with --json as `error` does."""
    _finish()
    _show_fault("", problem, hint)


def _show_fault(word: str, problem: str, hint: str | None) -> None:
    problem, hint = _one_line(for_people(problem)), _one_line(for_people(hint)) if hint else None
    for start, number, text in ((word, 31, problem), ("hint: ", 36, hint)):
        if text is not None:
            print(f"{_paint(start, number)}{encodable(text, sys.stderr.encoding)}", file=sys.stderr, flush=True)
    if _mode.get().json and processes.rank() == 0:
        _print([json.dumps({"error": problem, "hint": hint})], sys.stdout)


def trace(text: str) -> None:
    """Show a traceback."""
    _finish()
    _print(masked(text).split("\n"), sys.stderr)


def _paint(word: str, number: int) -> str:
    colour = word and sys.stderr.isatty() and "NO_COLOR" not in os.environ
    return f"\x1b[{number}m{word.rstrip()}\x1b[0m " if colour else word


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def progress() -> Progress:
    """Return the display of long jobs: a bar on a terminal, else lines at intervals; nothing with --quiet."""
    mode = _mode.get()
    if mode.progress is None:
        from dsctl.progress import Bar, Lines  # which --help does without

        silent = mode.quiet or processes.rank() != 0  # only the first of several processes shows progress
        mode.progress = NoProgress() if silent else Bar() if sys.stderr.isatty() else Lines(_to_stderr)
    return mode.progress


def transfers() -> Transfers:
    """Return the display of downloads and uploads; see `progress`."""
    mode = _mode.get()
    if mode.transfers is None:
        from dsctl.transfers import TransferBars, TransferLines

        bars = TransferBars() if sys.stderr.isatty() else TransferLines(_to_stderr)
        mode.transfers = NoTransfers() if mode.quiet else bars
    return mode.transfers


def end() -> None:
    """Leave the terminal as it was, for a process that ends here and now."""
    _finish()
    sys.stderr.flush()


def _finish() -> None:
    """Remove the bars that are still on the terminal."""
    for running in (_mode.get().progress, _mode.get().transfers):
        if running is not None:
            running.finish()
