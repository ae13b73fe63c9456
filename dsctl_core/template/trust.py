"""Decide whether the code of a template may run: `model.py` can do whatever the user can, so it needs consent."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dsctl_core.errors import UsageError
from dsctl_core.files.atomic import prepare_folder, write_text


@dataclass(frozen=True)
class Trust:
    """The permission to run code: `granted` for this run, or stored on this machine for code with the same hash.

    `option` is the option that gives the permission, for the error message.
    """

    granted: bool = False
    option: str = "--trust-template"

    def require(self, code: Path, digest: str) -> None:
        """Raise `UsageError` if the file `code`, with the SHA-256 `digest`, may not run."""
        if not self.granted and digest not in trusted_digests():
            raise UsageError(
                f"{code} is code that is not trusted (sha256 {digest})",
                hint=f"read it, then use {self.option}",
            )


def trusted_file() -> Path:
    """Return the file of the hashes of trusted code, one per line."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "dsctl" / "trusted_templates"


def trusted_digests() -> set[str]:
    """Return the hashes of the code that is trusted on this machine."""
    try:
        return set(trusted_file().read_text(encoding="utf-8").split())
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return set()


def add_trusted_digest(digest: str) -> None:
    """Store that the code with this hash is trusted."""
    file = trusted_file()
    prepare_folder(file.parent)
    write_text(file, "".join(f"{each}\n" for each in sorted({*trusted_digests(), digest})))
