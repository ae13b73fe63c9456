"""The dataset and the trainings with which addresses are compared with the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

TIMES = ("seconds", "samples_per_second", "peak_memory_bytes")
TRAIN = {"model": "tiny", "lora_rank": 2, "max_steps": 2, "batch_size": 2, "device": "cpu", "height": 32, "width": 32}


def write_dataset(folder: Path, count: int) -> Path:
    """Write `count` pictures with names that have a space, and their table; return the folder."""
    (folder / "sub").mkdir()
    rows = []
    for number in range(count):
        picture = Image.effect_noise((40 + 8 * number, 40), 20 + number).convert("RGB")
        picture.save(folder / "sub" / f"p {number}.png")
        rows.append({"image": f"sub/p {number}.png", "prompt": f"ball {number}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def losses(out: Path) -> list[dict[str, Any]]:
    """Return the metrics of a run, without those that differ from run to run."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
