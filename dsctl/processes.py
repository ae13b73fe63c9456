"""This process among those that share a command: which it is, and how it tells the one that started it how it ended."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = "DSCTL_PROCESS_FOLDER"  # set by a `dsctl` that has started this one: where to say how it ended


@dataclass(frozen=True)
class Ending:
    """The end of a process; `problem` is None if nothing went wrong."""

    rank: int
    code: int
    problem: str | None
    hint: str | None
    expected: bool  # an error that a person can do something about, rather than one that follows from another's
    seconds: float


def rank() -> int:
    """Return this process's number among those that share the command."""
    return int(os.environ.get("RANK", "0"))


def launcher() -> str | None:
    """Say by whom this process was started together with others; None when it is alone."""
    if FOLDER in os.environ:
        return "dsctl"
    return "a launcher" if "RANK" in os.environ and "WORLD_SIZE" in os.environ else None


def tell(code: int, problem: str | None, hint: str | None, *, expected: bool) -> bool:
    """Tell the `dsctl` that started this process how it ended; return whether there is one to tell."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        return False
    ending = Ending(rank(), code, problem, hint, expected, time.time())
    part = Path(folder, f"{rank()}.part")
    try:
        part.write_text(json.dumps(asdict(ending)), encoding="utf-8")
        part.rename(Path(folder, f"{rank()}.json"))
    except OSError:
        return False
    return True


def endings(folder: Path) -> list[Ending]:
    """Return how the processes ended, the one whose error is the others' reason first."""
    found = [Ending(**json.loads(path.read_text(encoding="utf-8"))) for path in folder.glob("*.json")]
    return sorted(found, key=lambda each: (each.problem is None, not each.expected, each.seconds))
