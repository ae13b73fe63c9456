"""Define the errors that a user can cause: each has a problem and a hint on how to fix it."""

from __future__ import annotations

import re

# Where an address begins in a text: s3://, s3:/ as a path has it, s3:\\, and s3: before what may be a password.
ADDRESS = re.compile(r"([a-z][a-z0-9+.-]{0,30}):([/\\]+|(?=[^\s:/@]{0,200}:\S{0,300}@))", re.IGNORECASE)
HOST = re.compile(r"(?:\[[0-9a-f:.]*\]|[^:@\[]*)(?::\d{1,5})?", re.IGNORECASE)
BUCKETS = ("s3", "s3a", "gs", "gcs", "hf", "modelscope", "oss")  # schemes of addresses that have no port
QUERY = re.compile(r"(:[/\\]+[^\s?#'\"]*)[?#](?=[^\s'\"]*=)[^\s'\"]*")
WEB_QUERY = re.compile(r"(https?:/+[^\s?#'\"]*)[?#][^\s'\"]*", re.IGNORECASE)
# An address as a path folds it, s3:/bucket/x, of the schemes that have stores. Behind a slash it is a local folder.
STORES = "s3a?|gs|gcs|hf|modelscope|https?|az|abfss?|adl|oss|memory|ftp|sftp|hdfs|webhdfs"
FOLDED = re.compile(rf"(?<![\w/\\.+-])({STORES}):/(?=[^/\s'\"])", re.IGNORECASE)

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: run the same command again


class DsctlError(Exception):
    """Error caused by a value, a file or an environment that cannot be used.

    `problem` describes what is wrong with the value; `hint` describes how to fix it; what may be a password in them is
    masked. The command line shows them as `error: ...` and `hint: ...` and exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, problem: str, *, hint: str | None = None) -> None:
        self.problem = for_people(problem)
        self.hint = None if hint is None else for_people(hint)
        super().__init__(self.problem)


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


def for_people(text: str) -> str:
    """Return a message with the addresses in it as they are written, with both slashes, and without secrets."""
    return masked(FOLDED.sub(r"\1://", text))


def masked(text: str) -> str:
    """Return a text without what may be a password or a signature in the addresses in it.

    A secret key of AWS may have slashes, which an address does not allow there: what follows the colon in
    `s3://KEY:SECRET@bucket/x` is hidden up to the last @, and without an @ up to the next space.
    """
    made, last = "", 0
    for found in ADDRESS.finditer(text):
        if found.start() < last:
            continue
        hidden = _secret(found[1].lower(), text[found.end() :])
        if hidden:
            made += f"{text[last : found.end()]}***"
            last = found.end() + hidden
    made += text[last:]
    return QUERY.sub(r"\1?***", WEB_QUERY.sub(r"\1?***", made))


def _secret(scheme: str, rest: str) -> int:
    """Return how many of the first characters after `scheme://` are to be hidden."""
    word, first = rest.split(maxsplit=1)[0] if rest[:1].strip() else "", re.split(r"[/\\\s]", rest, maxsplit=1)[0]
    if word == first:
        first = first.rstrip(":'\",.;)")  # of the sentence
    if ":" not in first and "@" not in first:
        return 0
    if not scheme.endswith(BUCKETS) and HOST.fullmatch(first):
        return max(word.rfind("@"), 0)  # its port is a number; an @ behind it may be the end of a password
    if "@" in rest:
        return (rest if ":" in first else word).rfind("@")
    return len(word)
