"""What went wrong, as `error: ...` and `hint: ...` on stderr, and the exit code that says so."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from dsctl import out, processes
from dsctl_core.errors import DsctlError

FAILED, USAGE, INTERRUPTED = 1, 2, 130
DEBUG = "DSCTL_DEBUG"


class Outcome:
    """Wraps a run: whatever it raises is shown, and becomes the exit code in `code`."""

    code: int = 0

    def __enter__(self) -> Outcome:
        """Begin the run."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        """Show `error`, if there is one, and let it go no further."""
        if isinstance(error, SystemExit):
            self.code = error.code if isinstance(error.code, int) else FAILED
        elif error is not None:
            self.code = report(error)
        elif self.code == INTERRUPTED:
            out.error("interrupted", None)
        if error is None or isinstance(error, SystemExit):
            processes.tell(self.code, None, None, expected=True)
        return True


def report(error: BaseException) -> int:
    """Show `error` and return the exit code; a traceback comes with it only when DSCTL_DEBUG=1."""
    if os.environ.get(DEBUG) == "1":
        out.trace("".join(traceback.format_exception(error)))
    if isinstance(error, BrokenPipeError):
        # Whoever read the output has gone; the interpreter must not try to flush the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    problem, hint, code = explained(error)
    if not processes.tell(code, problem, hint, expected=isinstance(error, DsctlError)):
        out.error(problem, hint)
    return code


def explained(error: BaseException) -> tuple[str, str | None, int]:
    """Return the problem, what to do about it, and the exit code."""
    if isinstance(error, DsctlError):
        return error.problem, error.hint, error.exit_code
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "interrupted", None, INTERRUPTED
    if isinstance(error, typer.TyperException):
        return error.format_message().rstrip("."), "see `dsctl --help`", USAGE
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
        return (
            f"out of memory: {_first_line(error)}",
            "use a smaller size or batch, --use-gradient-checkpointing in training, or --tiled in inference",
            FAILED,
        )
    if isinstance(error, OSError) and error.strerror:
        what = error.filename if error.filename is not None else "a file"
        return f"{what}: {error.strerror}", "check the path, its permissions and the free space", FAILED
    return (
        f"{type(error).__name__}: {_first_line(error)}",
        f"this is a mistake in dsctl: run it again with {DEBUG}=1 and report what it shows",
        FAILED,
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
