"""Whether the code of a template may run: `model.py` can do whatever the user can, so someone has to say so."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dsctl_core.errors import UsageError
from dsctl_core.files.atomic import prepare_folder, write_text


@dataclass(frozen=True)
class Trust:
    """Code may run where that is `given`, or where this very code was agreed to before on this machine.

    `how` is what a person does to give it, for the error message.
    """

    given: bool = False
    how: str = "--trust-template"

    def require(self, code: Path, digest: str) -> None:
        """Return if the file `code`, with the SHA-256 `digest`, may run; else raise a UsageError."""
        if not self.given and digest not in remembered():
            raise UsageError(
                f"{code} is code, and nobody has agreed to run it (sha256 {digest})",
                hint=f"read it, then give {self.how}",
            )


def memory_file() -> Path:
    """Return where the hashes of what was agreed to are kept, one a line."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "dsctl" / "trusted_templates"


def remembered() -> set[str]:
    """Return the hashes of the code that was agreed to on this machine."""
    try:
        return set(memory_file().read_text(encoding="utf-8").split())
    except (OSError, RuntimeError):  # the latter where there is no home
        return set()


def remember(digest: str) -> None:
    """Keep that the code with this hash was agreed to."""
    file = memory_file()
    prepare_folder(file.parent)
    write_text(file, "".join(f"{each}\n" for each in sorted({*remembered(), digest})))
