"""Locate the files that ship inside the package: the embedded model and two example datasets."""

from __future__ import annotations

from pathlib import Path


def assets_path(name: str = "") -> Path:
    """Return the place of a shipped file or folder: "tiny" (the model), "datasets/robot", "datasets/blueprint"."""
    return Path(__file__).parent / name
