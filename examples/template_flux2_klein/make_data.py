"""Makes the data set: pictures of your own, each at several brightnesses.

    python examples/template_flux2_klein/make_data.py PICTURES FOLDER

PICTURES has a metadata.csv with the columns image,prompt. A picture x with the mean luminance m becomes one with the
mean luminance t: x * t / m where it gets darker, 1 - (1 - x) * (1 - t) / (1 - m) where it gets brighter.
"""

import csv
import json
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

VARIANTS = 5
DARKEST, BRIGHTEST = 0.1, 0.9
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def main(pictures: Path, folder: Path) -> None:
    """Write the pictures and metadata.jsonl into `folder`."""
    rng = random.Random(0)
    folder.mkdir(parents=True)
    lines = []
    with (pictures / "metadata.csv").open(encoding="utf-8", newline="") as table:
        for number, row in enumerate(csv.DictReader(table)):
            with Image.open(pictures / row["image"]) as picture:
                pixels = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
            for variant in range(VARIANTS):
                # One of each fifth of the range, so that every picture is seen dark and bright.
                scale = DARKEST + (BRIGHTEST - DARKEST) * (variant + rng.random()) / VARIANTS
                name = f"{number:04}-{variant}.png"
                Image.fromarray(np.rint(255 * at_luminance(pixels, scale)).astype(np.uint8)).save(folder / name)
                inputs = {"scale": round(scale, 4)}
                lines.append(json.dumps({"image": name, "prompt": row["prompt"], "template_inputs": inputs}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def at_luminance(pixels: np.ndarray, wanted: float) -> np.ndarray:
    """Return the picture (H, W, 3) in [0, 1] with the mean luminance `wanted`."""
    mean = float((pixels @ LUMA).mean())
    if wanted <= mean:
        return pixels * (wanted / mean)
    return 1 - (1 - pixels) * ((1 - wanted) / (1 - mean))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
