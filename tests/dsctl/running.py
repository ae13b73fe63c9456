"""Runs the command line inside the test's process and keeps what it printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Run:
    """How a run ended: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        return json.loads(self.out)

    def fault(self, code: int) -> tuple[str, str]:
        """Return what stands after `error: ` and `hint: `; there must be one line of each, and nothing on stdout."""
        assert (self.code, self.out) == (code, ""), f"exit {self.code}\n{self.out}{self.err}"
        lines = self.err.splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
        assert (len(errors), len(hints)) == (1, 1), self.err
        assert "Traceback" not in self.err
        return errors[0], hints[0]


Dsctl = Callable[..., Run]
