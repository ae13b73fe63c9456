"""Measures how well a model follows prompts that were kept out of its training, and draws a grid.

A sample is compared with plain drawings of what was asked for and of everything else that could have
been: the background, the place and the subject count as right when the right one is the nearest.
"""

import argparse
import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from drawings import Drawings, fetch
from objects import COLOURS, OBJECTS, PLACES, SCENES, SHAPES
from scenes import SIZE, NoJitter, Scene, Subject, captions, paint, paint_background, random_scene

Painter = Callable[[list[str]], list[Image.Image]]

PROMPTS, BATCH = 160, 16
STEPS, CFG_SCALE = 20, 3.0
DIFFERENT = 40.0  # levels in any colour at which a pixel is no longer background
GRID = (
    "a fox on a blue background",
    "a cat on a yellow background",
    "a penguin in the snow",
    "an apple on a white background",
    "an owl under the night sky",
    "a hamburger on the grass",
    "a palm tree on the beach",
    "a skull on a purple background",
    "a blue star on a yellow background",
    "a green circle at the top on a white background",
    "a tulip on a pink background",
    "a crown on a black background",
    "a house on the grass",
    "a guitar on a teal background",
    "a small mushroom in the bottom left corner on a green background",
    "a dog on the left and a car on the right on a white background",
    "an apple on the left and a banana on the right on a gray background",
    "a fox above a bear on a blue background",
    "an ice cream on an orange background",
    "a unicorn on a purple background",
    "a snail on the right on a brown background",
    "an alarm clock on a red background",
    "a butterfly on a green background",
    "A pumpkin under the night sky",
)


def evaluate(painter: Painter, drawings: Drawings, seed: int = 7) -> dict[str, float]:
    """Return the shares of right backgrounds, places and subjects, and the mean PSNR."""
    rng = random.Random(seed)
    scenes = [random_scene(rng, unseen=True) for _ in range(PROMPTS)]
    samples: list[Image.Image] = []
    for start in range(0, PROMPTS, BATCH):
        prompts = [captions(scene, rng)[0] for scene in scenes[start : start + BATCH]]
        samples += painter(prompts)
    marks: dict[str, list[float]] = {}
    for scene, sample in zip(scenes, samples, strict=True):
        for name, value in _judge(scene, np.asarray(sample, dtype=np.float32), drawings):
            marks.setdefault(name, []).append(value)
    return {name: round(float(np.mean(values)), 4) for name, values in sorted(marks.items())}


def _judge(scene: Scene, sample: np.ndarray, drawings: Drawings) -> list[tuple[str, float]]:
    """Return the marks of one sample (SIZE, SIZE, 3)."""
    wanted = _plain(scene, drawings)
    empty = _background(scene.background)
    behind = np.abs(wanted - empty).max(axis=2) == 0
    distances = {name: np.square(sample - _background(name))[behind].mean() for name in (*COLOURS, *SCENES)}
    marks = [("background", float(min(distances, key=distances.__getitem__) == scene.background))]
    error = np.square(sample - wanted)[~behind].mean()
    marks.append(("psnr_of_subject", float(10 * np.log10(255.0**2 / max(error, 1e-3)))))
    kind = "two" if len(scene.subjects) == 2 else "large" if scene.large else "small"
    for slot in range(len(scene.subjects)):
        right = _nearest_subject(scene, slot, sample, drawings) == scene.subjects[slot]
        marks.append((f"subject_{kind}", float(right)))
    if kind == "small":
        foreground = np.abs(sample - empty).max(axis=2) > DIFFERENT
        marks.append(("place", float(_nearest_place(foreground) == scene.place)))
    return marks


def _nearest_subject(scene: Scene, slot: int, sample: np.ndarray, drawings: Drawings) -> Subject:
    """Return the subject that, drawn in this slot, comes nearest to the sample."""
    every = [Subject(word) for word in OBJECTS]
    every += [Subject(shape, colour) for shape in SHAPES for colour in COLOURS]
    seen = halved(sample)
    errors = []
    for subject in every:
        subjects = tuple(subject if i == slot else s for i, s in enumerate(scene.subjects))
        other = dataclasses.replace(scene, subjects=subjects)
        errors.append(np.square(seen - halved(_plain(other, drawings))).mean())
    return every[int(np.argmin(errors))]


def _nearest_place(foreground: np.ndarray) -> str:
    """Return the place whose centre is nearest to the middle of the foreground."""
    if not foreground.any():
        return "nowhere"
    rows, columns = np.nonzero(foreground)
    y, x = (rows.mean() + 0.5) / SIZE, (columns.mean() + 0.5) / SIZE
    return min(PLACES, key=lambda p: (PLACES[p][0][0] - x) ** 2 + (PLACES[p][0][1] - y) ** 2)


def _plain(scene: Scene, drawings: Drawings) -> np.ndarray:
    return np.asarray(paint(scene, drawings, NoJitter(0)), dtype=np.float32)


def _background(name: str) -> np.ndarray:
    return np.asarray(paint_background(name, NoJitter(0)), dtype=np.float32)


def halved(picture: np.ndarray) -> np.ndarray:
    """Average 2x2 pixels: a shift of a pixel should not decide."""
    return picture.reshape(SIZE // 2, 2, SIZE // 2, 2, 3).mean(axis=(1, 3))


def draw_grid(painter: Painter, prompts: tuple[str, ...] = GRID, columns: int = 8) -> Image.Image:
    """Return samples of the prompts, row by row."""
    samples = painter(list(prompts))
    cell = SIZE + 2
    rows = -(-len(samples) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * cell), (110, 110, 110))
    for i, sample in enumerate(samples):
        sheet.paste(sample, (i % columns * cell + 1, i // columns * cell + 1))
    return sheet


def load_painter(folder: Path) -> Painter:
    """Return a function from prompts to pictures that runs the model in `folder`."""
    from dsctl_core import ModelConfig, QwenImagePipeline

    pipe = QwenImagePipeline.from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(path=str(folder))]
    )

    def paint_prompts(prompts: list[str]) -> list[Image.Image]:
        return pipe(
            prompt=prompts,
            cfg_scale=CFG_SCALE,
            height=SIZE,
            width=SIZE,
            seed=list(range(len(prompts))),
            num_inference_steps=STEPS,
        )

    return paint_prompts


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the model, diffusers layout")
    parser.add_argument("--work", type=Path, default=Path("build/embedded_model"))
    parser.add_argument("--output", type=Path, required=True, help="folder for numbers and grid")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    painter = load_painter(options.folder)
    draw_grid(painter).save(options.output / "samples.png")
    numbers = evaluate(painter, Drawings(fetch(options.work)))
    (options.output / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n")
    print(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()
