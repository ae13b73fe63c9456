"""Turn exceptions of a template's code into errors of one line with file and line number."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsctl_core.errors import CodeError, DsctlError


@contextmanager
def template_errors(code: Path, what: str, hint: str | None = None) -> Iterator[None]:
    """Turn an exception in this block into a `DsctlError` with the file `code`, its line, and `what`.

    It is a `CodeError` if it cannot be due to the values that the code was given, such as an undefined name. The
    exception remains the cause of the error. A `DsctlError` and out-of-memory errors are not changed.
    """
    try:
        yield
    except DsctlError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise
        kind = CodeError if isinstance(error, _MISTAKES) else DsctlError
        raise kind(f"{_location(code, error)}: {what}: {_summary(error)}", hint=hint or _HINT) from error


_MISTAKES = (NameError, ImportError, SyntaxError)
_HINT = "correct that file, or ask its author; DSCTL_DEBUG=1 shows the whole traceback"


def _location(code: Path, error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename == str(code):
        return f"{code}, line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(code)]
    return f"{code}, line {lines[-1]}" if lines else str(code)


def _summary(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}"
    if isinstance(error, SystemExit):
        return f"it calls exit({error.code})"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
