"""Locate the files that ship inside the package: the embedded models and the example datasets."""

from __future__ import annotations

from pathlib import Path


def assets_path(name: str = "") -> Path:
    """Return the place of a shipped file or folder: "tiny" and "tiny-edit" (the models), or "datasets/NAME".

    The datasets are robot, blueprint and frame_edit.
    """
    return Path(__file__).parent / name
