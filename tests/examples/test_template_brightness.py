"""The weights of the brightness template that are shipped do what its README says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dsctl.app import main

LUMA = np.array([0.299, 0.587, 0.114])
SEEDS = 8


def test_a_larger_scale_draws_brighter_pictures(repository: Path, tmp_path: Path) -> None:
    template = repository / "examples" / "template_brightness" / "brightness"
    weights = template / "model.safetensors"
    assert weights.stat().st_size <= 4_000_000
    means = []
    for scale in (0.2, 0.5, 0.8):
        words = ["infer", "--model", "tiny", "--prompt", "a fox on a blue background", "--device", "cpu"]
        words += ["--template", template, "--trust-template", "--template-inputs", f'{{"scale": {scale}}}']
        words += ["--num-images", SEEDS, "--num-inference-steps", 2, "--output", tmp_path / f"{scale}.png"]
        assert main([str(word) for word in words]) == 0
        files = sorted(tmp_path.glob(f"{scale}-*.png"))
        assert len(files) == SEEDS
        means.append(np.mean([(np.asarray(Image.open(file).convert("RGB")) / 255 @ LUMA).mean() for file in files]))
    low, middle, high = means
    assert low + 0.15 < middle < high - 0.15, means
