"""Define the errors that a user can cause: each has a problem and a hint on how to fix it."""

from __future__ import annotations

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: run the same command again


class DsctlError(Exception):
    """Error caused by a value, a file or an environment that cannot be used.

    `problem` describes what is wrong with the value; `hint` describes how to fix it. The command line shows them as
    `error: ...` and `hint: ...` and exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, problem: str, *, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


class UsageError(DsctlError):
    """Error in the command itself: an option, a name or a value that is invalid with any file and on any machine."""

    exit_code = 2


class Stopped(DsctlError):
    """The end of a command that was told to stop, and did so in order: nothing is wrong."""

    exit_code = 130


class CodeError(DsctlError):
    """Error in code that a user supplied, which is wrong for every sample: leaving out one does not help."""


def near_miss(name: str, known: list[str] | tuple[str, ...]) -> str | None:
    """Return the entry of `known` that is most similar to `name`, or None when none is similar."""
    import difflib

    folded = {entry.lower(): entry for entry in known}
    found = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.6)
    return folded[found[0]] if found else None


def unknown_name(what: str, name: str, known: list[str] | tuple[str, ...], *, listing: str | None = None) -> UsageError:
    """Return the error for a `name` that is not in `known`.

    The hint is the most similar known name if there is one, else `listing`, else all known names. `what` is the kind
    of name ("family", "model").
    """
    guess = near_miss(name, known)
    if guess is not None:
        hint = f"did you mean {guess!r}?"
    elif listing is not None:
        hint = listing
    else:
        hint = f"known: {', '.join(known)}"
    return UsageError(f"unknown {what} {name!r}", hint=hint)
