"""Record the rows that a run skips."""

from __future__ import annotations

import json
from pathlib import Path

from dsctl_core.cache.folder import SKIPPED_FILE
from dsctl_core.data.problems import kind_of_problem
from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import write_error


class SkippedRows:
    """Keeps the error of each skipped row, once; after `start` also in `skipped.jsonl`.

    A resumed run keeps the lines that the file already has.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / SKIPPED_FILE
        self.lines: dict[str, str] = {}
        self.started = False

    def __len__(self) -> int:
        return len(self.lines)

    def add(self, error: DsctlError) -> None:
        """Record the error of one row, unless it is recorded already."""
        if error.problem in self.lines:
            return
        line = {"problem": error.problem, "hint": error.hint, "kind": kind_of_problem(error)}
        self.lines[error.problem] = json.dumps(line, ensure_ascii=False) + "\n"
        if self.started:
            self._write("a", self.lines[error.problem])

    def start(self, *, is_main_process: bool = True) -> None:
        """Write the errors recorded so far, which all processes have; no file is written if there are none."""
        self.started = True
        if self.lines and is_main_process:
            earlier = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.is_file() else []
            self._write("w", "".join(dict.fromkeys([*earlier, *self.lines.values()])))

    def _write(self, mode: str, text: str) -> None:
        try:
            with self.path.open(mode, encoding="utf-8") as stream:
                stream.write(text)
        except OSError as error:
            raise write_error(self.path, error) from error
