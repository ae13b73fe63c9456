"""Draws with the packed template: the mean luminance over 8 seeds, and a picture of prompts by scales.

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
PROMPTS = (
    "a fox on a blue background",
    "a red apple",
    "a car on a yellow background",
    "a key on a pink background",
)
SCALES = (0.2, 0.35, 0.5, 0.65, 0.8)
MEASURED, SEEDS, STEPS = (0.2, 0.5, 0.8), 8, 12
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

    def draw(prompt: str, scale: float, seed: int, negative: bool = False) -> Image.Image:
        given = [{"scale": scale}]
        return templates(
            pipe,
            prompt=prompt,
            seed=seed,
            num_inference_steps=STEPS,
            template_inputs=given,
            negative_template_inputs=given if negative else [],
        )

    for negative in (False, True):
        for scale in MEASURED:
            each = [luminance(draw(PROMPTS[0], scale, seed, negative)) for seed in range(SEEDS)]
            words = "with the negative input" if negative else "alone"
            span = f"from {min(each):.3f} to {max(each):.3f}"
            print(f"scale {scale} {words}: mean {np.mean(each):.3f}, {span}", flush=True)
    rows = [[draw(prompt, scale, seed=0) for scale in SCALES] for prompt in PROMPTS]
    grid(rows).save(output)


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
