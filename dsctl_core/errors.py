"""The errors that a user can cause, each with what is wrong and what to do about it."""

from __future__ import annotations


class DsctlError(Exception):
    """Something the user gave cannot be used.

    `problem` says what is wrong with the value given; `hint` says what to do. The command line shows them as
    `error: ...` and `hint: ...` and exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, problem: str, *, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


class UsageError(DsctlError):
    """The command itself is wrong: an option, a name or a value that no file or machine could make right."""

    exit_code = 2


def near_miss(name: str, known: list[str] | tuple[str, ...]) -> str | None:
    """Return the entry of `known` that `name` most likely meant, or None when nothing is close."""
    import difflib

    folded = {entry.lower(): entry for entry in known}
    found = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.6)
    return folded[found[0]] if found else None


def unknown_name(what: str, name: str, known: list[str] | tuple[str, ...], *, listing: str | None = None) -> UsageError:
    """Build the error for a name that is not in `known`: the near miss if there is one, else all of them."""
    guess = near_miss(name, known)
    if guess is not None:
        hint = f"did you mean {guess!r}?"
    elif listing is not None:
        hint = listing
    else:
        hint = f"known: {', '.join(known)}"
    return UsageError(f"unknown {what} {name!r}", hint=hint)
