"""Find the folder in which this user's programs keep what can be made anew."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def user_cache() -> Path | None:
    """Return the folder of dsctl in the user's cache folder; None if the user has no home folder."""
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    named = os.environ.get(variable)
    try:
        return (Path(named) if named else Path.home() / ".cache") / "dsctl"
    except RuntimeError:
        return None
