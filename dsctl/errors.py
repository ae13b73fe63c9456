"""Show an exception as `error: ...` and `hint: ...` on stderr, and return its exit code."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from dsctl import out, processes
from dsctl_core.errors import DsctlError, Stopped

FAILED, USAGE, INTERRUPTED = 1, 2, Stopped.exit_code
DEBUG = "DSCTL_DEBUG"


class Outcome:
    """A context manager for a run: it shows any exception and sets the exit code `code`."""

    code: int = 0

    def __enter__(self) -> Outcome:
        """Begin the run."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        """Show `error`, if there is one, and suppress it."""
        if isinstance(error, SystemExit):
            self.code = error.code if isinstance(error.code, int) else FAILED
        elif error is not None:
            self.code = report(error)
        elif self.code == INTERRUPTED:
            out.stopped("interrupted", None)
        if error is None or isinstance(error, SystemExit):
            processes.tell(self.code, None, None, expected=True)
        return True


def report(error: BaseException) -> int:
    """Show `error`, with a traceback if DSCTL_DEBUG=1, and return the exit code."""
    if os.environ.get(DEBUG) == "1":
        out.trace("".join(traceback.format_exception(error)))
    if isinstance(error, BrokenPipeError):
        # The reader of the output has closed the pipe; the interpreter must not flush the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    problem, hint, code = explained(error)
    if not processes.tell(code, problem, hint, expected=isinstance(error, DsctlError)):
        told = isinstance(error, KeyboardInterrupt | typer.Abort | Stopped)
        (out.stopped if told else out.error)(problem, hint)
    return code


def explained(error: BaseException) -> tuple[str, str | None, int]:
    """Return the problem, the hint and the exit code for an exception."""
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
        what = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "a file"
        return f"{what}: {error.strerror}", "check the path, its permissions and the free space", FAILED
    return (
        f"{type(error).__name__}: {_first_line(error)}",
        f"this is a bug in dsctl: run the command again with {DEBUG}=1 and report the traceback",
        FAILED,
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
