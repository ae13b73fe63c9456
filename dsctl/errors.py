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
    lost = _lost_process(error)
    if lost is not None:
        return *lost, FAILED
    return (
        f"{type(error).__name__}: {_first_line(error)}",
        f"this is a bug in dsctl: run the command again with {DEBUG}=1 and report the traceback",
        FAILED,
    )


def _lost_process(error: BaseException) -> tuple[str, str] | None:
    """Return the problem and the hint where `error` is that another process of the command is gone; None for others.

    torch has no class of its own for either: of a worker that reads data, and of a connection of gloo that was closed.
    """
    line = _first_line(error)
    if isinstance(error, RuntimeError) and line.startswith("DataLoader worker"):
        return (
            f"a process that reads data has ended: {line}",
            "main memory may have been full: see the system's log, and take fewer --dataset-num-workers",
        )
    of_torch = type(error).__name__ in ("DistBackendError", "DistNetworkError")
    if processes.launcher() is not None and (of_torch or (isinstance(error, RuntimeError) and "gloo" in line)):
        return (
            f"another process of this run cannot be reached: {line}",
            "see how that one ended (main memory may have been full), and go on with --resume latest",
        )
    return None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
