"""Draws with the packed template: the mean luminance over 8 seeds, and a picture of seeds by scales.

python examples/template_brightness/measure.py GRID.png
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dsctl_core import ModelConfig
from dsctl_core.families.resolve import resolve_model
from dsctl_core.template import TemplatePipeline

TEMPLATE = Path(__file__).parent / "brightness"
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
PROMPT = "a fox on a blue background"
SCALES = (0.2, 0.5, 0.8)
WAY = {"height": 96, "width": 96, "num_inference_steps": 10, "cfg_scale": 3.0}  # the model's own but for the steps
SEEDS, ROWS = 8, 4
GAP = 4  # pixels between pictures


def main(output: Path) -> None:
    """Print a line for each measured scale, without and with the same scale as negative input; write the grid."""
    pipe = resolve_model("tiny").load_pipeline(torch_dtype=torch.float32, device="cpu")
    templates = TemplatePipeline.from_pretrained(
        torch_dtype=torch.float32,
        device="cpu",
        model_configs=[ModelConfig(path=TEMPLATE)],
        trust_template=True,
    )

    def draw(scale: float, seed: int, negative: bool = False) -> Image.Image:
        given = [{"scale": scale}]
        return templates(
            pipe,
            prompt=PROMPT,
            seed=seed,
            **WAY,
            template_inputs=given,
            negative_template_inputs=given if negative else [],
        )

    for negative in (False, True):
        columns = []
        for scale in SCALES:
            drawn = [draw(scale, seed, negative) for seed in range(SEEDS)]
            each = [luminance(picture) for picture in drawn]
            words = "with the negative input" if negative else "alone"
            print(f"scale {scale} {words}: mean {np.mean(each):.3f} ({min(each):.3f} to {max(each):.3f})", flush=True)
            columns.append(drawn)
        if not negative:
            grid([list(row) for row in zip(*columns, strict=True)][:ROWS]).save(output)


def luminance(picture: Image.Image) -> float:
    """Return the mean luminance of a picture, in [0, 1]."""
    return float((np.asarray(picture.convert("RGB")) / 255 @ LUMA).mean())


def grid(rows: list[list[Image.Image]]) -> Image.Image:
    """Return the pictures side by side."""
    width, height = (side + GAP for side in rows[0][0].size)
    whole = Image.new("RGB", (width * len(rows[0]) - GAP, height * len(rows) - GAP), "white")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            whole.paste(picture, (column * width, row * height))
    return whole


if __name__ == "__main__":
    main(Path(sys.argv[1]))
