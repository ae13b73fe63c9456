"""Fails unless a run has finite losses up to its last step, and its LoRA changes the picture: check.py RUN A B."""

import json
import math
import sys
from pathlib import Path

from PIL import Image, ImageChops


def main(run: Path, before: Path, after: Path) -> int:
    """Print what is wrong, and return the exit code."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    wanted = json.loads((run / "run.json").read_text(encoding="utf-8"))["options"]["max_steps"]
    wrong = []
    if list(losses) != list(range(1, wanted + 1)):
        wrong.append(f"metrics.jsonl has {len(losses)} steps of {wanted}")
    if not all(isinstance(loss, float) and math.isfinite(loss) for loss in losses.values()):
        wrong.append("a loss is not finite")
    with Image.open(before) as one, Image.open(after) as other:
        if one.size != other.size or not ImageChops.difference(one.convert("RGB"), other.convert("RGB")).getbbox():
            wrong.append(f"{after} is {before}: the LoRA changes nothing")
    for problem in wrong:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
