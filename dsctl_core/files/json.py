"""Read JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsctl_core.errors import DsctlError


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; anything else there is a DsctlError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DsctlError(f"{path} cannot be read: {error.strerror or error}", hint="check the path") from error
    except ValueError as error:
        raise DsctlError(f"{path} is not valid JSON: {error}", hint="restore the file from where it came") from error
    if not isinstance(value, dict):
        raise DsctlError(f"{path} should hold a JSON object", hint="restore the file from where it came")
    return value
