"""Keep the captions of a table that is not complete, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import write_error, write_text
from dsctl_core.files.json import decode_json

KIND = "dsctl dataset caption"


class Journal:
    """The file TABLE.partial: a line with the settings of a run, and one for each caption.

    `captions` has those of earlier runs, by the number of the row and the name of the file. Raises DsctlError for a
    file of another kind, and for one with other settings.
    """

    def __init__(self, table: Path, settings: dict[str, Any]) -> None:
        self.path = table.with_name(f"{table.name}.partial")
        self.captions: dict[tuple[int, str], str] = {}
        self.first = json.dumps({"made_by": KIND, "settings": settings}, ensure_ascii=False) + "\n"
        if self.path.exists():
            self._read(settings)

    def _read(self, settings: dict[str, Any]) -> None:
        try:
            first, *lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
            found = decode_json(first)
        except (OSError, ValueError):
            found, lines = None, []
        if self.path.is_symlink() or not isinstance(found, dict) or found.get("made_by") != KIND:
            raise DsctlError(f"{self.path} is there already, and is not of this command", hint="move it")
        known = found.get("settings")
        known = known if isinstance(known, dict) else {}
        changed = [name for name, value in settings.items() if known.get(name) != value]
        if changed:
            flag = f"--{changed[0].replace('_', '-')}"
            raise DsctlError(
                f"{self.path} has captions that were made with another {flag}: {known.get(changed[0])!r}",
                hint="give the same options to finish them, or remove that file to begin anew",
            )
        whole = [line for line in lines if line.endswith("\n")]
        for line in whole:
            try:
                value = decode_json(line)
                self.captions[int(value["row"]), str(value["file"])] = str(value["prompt"])
            except (ValueError, TypeError, KeyError) as error:
                raise DsctlError(f"{self.path} is damaged", hint="remove that file to begin anew") from error
        if len(whole) < len(lines):  # the run was stopped while it wrote the last line
            write_text(self.path, self.first + "".join(whole))

    def add(self, number: int, name: str, caption: str) -> None:
        """Add the caption of a row."""
        line = json.dumps({"row": number, "file": name, "prompt": caption}, ensure_ascii=False) + "\n"
        try:
            with self.path.open("a", encoding="utf-8", newline="\n") as stream:
                stream.write(line if stream.tell() else self.first + line)
        except OSError as error:
            raise write_error(self.path, error) from error

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)
