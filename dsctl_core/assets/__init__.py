"""Locate the files that ship inside the package: the embedded models and the example datasets."""

from __future__ import annotations

from pathlib import Path


def assets_path(name: str = "") -> Path:
    """Return the place of a shipped file or folder: "datasets/NAME", or a model.

    The models are tiny, tiny-edit and tiny-video, the datasets robot, blueprint, frame_edit and moves_down.
    """
    return Path(__file__).parent / name
