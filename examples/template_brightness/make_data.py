"""Draws the data set: pictures by the model itself, each at several brightnesses.

    python examples/template_brightness/make_data.py FOLDER

A picture x with the mean luminance m becomes one with the mean luminance t, exactly but for rounding: x * t / m where
it gets darker, 1 - (1 - x) * (1 - t) / (1 - m) where it gets brighter.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

PICTURES, VARIANTS = 120, 5
DARKEST, BRIGHTEST = 0.1, 0.9
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
OBJECTS = "fox apple car cat dog duck house key owl penguin tulip turtle bell crown guitar mushroom snail umbrella"
BACKGROUNDS = "red blue green yellow orange purple pink teal white gray brown black"


def main(folder: Path) -> None:
    """Write the pictures and metadata.jsonl into `folder`."""
    rng = random.Random(0)
    pairs = [(thing, colour) for thing in OBJECTS.split() for colour in BACKGROUNDS.split()]
    prompts = [f"{article(thing)} {thing} on {article(colour)} {colour} background" for thing, colour in pairs]
    prompts = rng.sample(prompts, PICTURES)
    folder.mkdir(parents=True)
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    draw(folder)
    rows = []
    for number, prompt in enumerate(prompts, start=1):
        with Image.open(folder / f"drawn-{number:03}.png") as picture:
            pixels = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
        for variant in range(VARIANTS):
            # One of each fifth of the range, so that every picture is seen dark and bright.
            scale = DARKEST + (BRIGHTEST - DARKEST) * (variant + rng.random()) / VARIANTS
            name = f"picture-{number:03}-{variant}.png"
            Image.fromarray(np.rint(255 * at_luminance(pixels, scale)).astype(np.uint8)).save(folder / name)
            rows.append({"image": name, "prompt": prompt, "template_inputs": {"scale": round(scale, 4)}})
    lines = (json.dumps(row) for row in rows)
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def article(word: str) -> str:
    """Return the article that goes before `word`."""
    return "an" if word[0] in "aeiou" else "a"


def draw(folder: Path) -> None:
    """Have the model draw the prompts in `folder`."""
    words = ["infer", "--model", "tiny", "--num-inference-steps", "12", "--quiet"]
    files = ["--prompts-file", str(folder / "prompts.txt"), "--output", str(folder / "drawn.png")]
    subprocess.run([sys.executable, "-m", "dsctl", *words, *files], check=True, stdout=subprocess.DEVNULL)


def at_luminance(pixels: np.ndarray, wanted: float) -> np.ndarray:
    """Return the picture (H, W, 3) in [0, 1] with the mean luminance `wanted`."""
    mean = float((pixels @ LUMA).mean())
    if wanted <= mean:
        return pixels * (wanted / mean)
    return 1 - (1 - pixels) * ((1 - wanted) / (1 - mean))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
