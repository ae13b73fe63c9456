"""What a template's own code does wrong, in one line that says where; its traceback stays the cause of the error."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsctl_core.errors import DsctlError


@contextmanager
def blamed_on(code: Path, what: str, hint: str | None = None) -> Iterator[None]:
    """Turn any exception of the code in `code` into a DsctlError that says that `what` failed, and in which line.

    Errors that are for the user already, and a full memory, pass as they are.
    """
    try:
        yield
    except DsctlError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise
        raise DsctlError(f"{_place(code, error)}: {what}: {_in_short(error)}", hint=hint or _HINT) from error


_HINT = "correct that file, or ask its author; DSCTL_DEBUG=1 shows the whole traceback"


def _place(code: Path, error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename == str(code):
        return f"{code}, line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(code)]
    return f"{code}, line {lines[-1]}" if lines else str(code)


def _in_short(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}"
    if isinstance(error, SystemExit):
        return f"it calls exit({error.code})"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
