"""Define the error for problems of a dataset. Its `kind` groups the problems of a report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from dsctl_core.errors import DsctlError

Kind = Literal[
    "table",
    "column",
    "caption",
    "path",
    "missing file",
    "unreadable file",
    "not a picture",
    "damaged file",
    "size",
    "video",
    "list",
    "partner",
    "other",
]


class DataError(DsctlError):
    """A part of a dataset that cannot be used; `kind` is the category of the problem."""

    def __init__(self, problem: str, *, hint: str | None = None, kind: Kind = "other") -> None:
        super().__init__(problem, hint=hint)
        self.kind: Kind = kind


def kind_of_problem(error: DsctlError) -> Kind:
    """Return the kind of a problem: "other" for an error that is not a `DataError`."""
    return error.kind if isinstance(error, DataError) else "other"


@contextmanager
def explained_os_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` of reading `path` into a `DataError` that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist",
            hint="check the path; it is relative to the current folder",
            kind="missing file",
        ) from error
    except PermissionError as error:
        raise DataError(
            f"{path} cannot be read (permission denied)", hint=f"chmod u+r {path}", kind="unreadable file"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}", hint="check the path", kind="unreadable file"
        ) from error
