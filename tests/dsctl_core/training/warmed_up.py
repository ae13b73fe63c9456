"""Imported once by a process that others are forked from, so that each of them trains at once."""

import tempfile
from pathlib import Path

from tests.dsctl_core.training.runs import train

with tempfile.TemporaryDirectory() as folder:
    train(Path(folder, "run"), max_steps=2, save_steps=1)
