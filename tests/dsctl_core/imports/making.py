"""Write configs of other tools for the tests of their import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def write(files: dict[str, str]) -> list[Path]:
    """Write the files into the working directory, and return their paths."""
    for name, text in files.items():
        Path(name).write_text(text, encoding="utf-8")
    return [Path(name) for name in files]


def process(**settings: Any) -> str:
    """Return an ai-toolkit config of a whole run, with `settings` such as train={...} over it."""
    whole: dict[str, Any] = {
        "type": "sd_trainer",
        "training_folder": "out",
        "network": {"type": "lora", "linear": 8, "linear_alpha": 8},
        "datasets": [{"folder_path": "d"}],
        "train": {"steps": 100, "lr": 1e-4},
        "model": {"name_or_path": "Qwen/Qwen-Image"},
    }
    return yaml.safe_dump({"job": "train", "config": {"name": "a", "process": [whole | settings]}})
