"""Read the options of an earlier run from its run.json, to run it again: their values, and which of them were given."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsctl_core.errors import UsageError
from dsctl_core.files.json import read_json

SUFFIX = ".json"
# Options of one call of the command, rather than of the run: how it was resumed, and that code of others could run.
OF_ONE_CALL = ("resume", "allow_changed", "dry_run", "trust_template")
# Options that were resolved from others: with another one of those, they are resolved again.
FOLLOWS = {
    "learning_rate": ("optimizer", "trainable_models", "model", "model_paths", "model_id_with_origin_paths"),
    "mixed_precision": ("device", "from_cache"),
}


@dataclass(frozen=True)
class EarlierRun:
    """The options of an earlier run: all values as they were resolved, and the names of those that were given."""

    values: dict[str, Any]
    given: frozenset[str]

    def without_resolved(self, flags: Collection[str]) -> EarlierRun:
        """Return it without the values that were resolved from options that `flags` have now."""
        gone = [name for name, others in FOLLOWS.items() if name not in self.given and set(others) & set(flags)]
        return EarlierRun({name: value for name, value in self.values.items() if name not in gone}, self.given)


def read_run_file(path: Path, command: str) -> EarlierRun:
    """Return the options in a run.json that `command` ("train") wrote.

    Raises DsctlError for a file that cannot be read, and UsageError for one of another command, and for one that does
    not say which options were given.
    """
    run = read_json(path)
    if run.get("command") != command:
        what = f"of `dsctl {run['command']}`" if isinstance(run.get("command"), str) else "not of a run"
        raise UsageError(f"--config {path} is {what}", hint=f"give the run.json of a `dsctl {command}`, or a TOML file")
    options, given = run.get("options"), run.get("given")
    if not isinstance(options, dict) or not isinstance(given, list):
        raise UsageError(
            f"--config {path} does not say which options were given: an earlier version of dsctl wrote it",
            hint="write the options into a TOML file",
        )
    kept = {name: value for name, value in options.items() if name not in OF_ONE_CALL and value is not None}
    return EarlierRun(kept, frozenset(name for name in given if name in kept))
