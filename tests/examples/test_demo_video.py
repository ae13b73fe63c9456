"""The demo of clips runs from its first command to its comparison."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from PIL import Image


def test_the_demo_of_clips_compares_before_and_after(python: str, repository: Path, tmp_path: Path):
    demo = repository / "examples" / "demo_video"
    environment = {
        **os.environ,
        "STEPS": "2",
        "SAMPLING": "2",
        "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}",
    }
    words = ["sh", str(demo / "run.sh"), str(tmp_path / "demo")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    prompts = (demo / "prompts.txt").read_text().splitlines()
    before, after = (sorted((tmp_path / "demo" / name).glob("*.gif")) for name in ("before", "after"))
    assert len(before) == len(after) == len(prompts)
    for one, other in zip(before, after, strict=True):
        assert one.read_bytes() != other.read_bytes(), f"the LoRA left {other.name} as it was"
    with Image.open(tmp_path / "demo" / "comparison.gif") as comparison:
        assert comparison.n_frames == 17
        assert comparison.width > len(prompts) * 64
    with Image.open(tmp_path / "demo" / "sheet.png") as sheet:
        assert sheet.height > 2 * len(prompts) * 64
