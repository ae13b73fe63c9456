"""Makes a control dataset of the embedded drawings: each cut out and put at a random place, with its silhouette.

A drawing on a plain background is cut out by its colour, then moved, scaled and mirrored on backgrounds of all colours.
The silhouette, white on black, is the control picture. Some arrangements are held out, to test with.
"""

import argparse
import csv
import random
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIDE = 96
SOLID = 0.5  # of the box around a drawing, the share that it fills at least
TOLERANCE = 48  # of 255 * 3: how far from the colour of the corner a pixel of the background may be
COLOURS = {  # those of the embedded model's own training
    "red": (214, 48, 39),
    "orange": (247, 135, 30),
    "yellow": (250, 209, 47),
    "green": (52, 158, 70),
    "teal": (64, 190, 184),
    "blue": (48, 92, 220),
    "purple": (130, 60, 190),
    "pink": (252, 160, 190),
    "white": (250, 250, 250),
    "gray": (148, 148, 152),
}


def silhouette(picture: Image.Image) -> Image.Image:
    """Return the mask ("L", 0 or 255) of what is not connected to the borders in the colour of the corners."""
    marked, corner = picture.convert("RGB"), (SIDE - 1, SIDE - 1)
    mark = (1, 254, 3)
    for place in ((0, 0), (corner[0], 0), (0, corner[1]), corner):
        ImageDraw.floodfill(marked, place, mark, thresh=TOLERANCE)
    same = ImageChops.difference(marked, Image.new("RGB", marked.size, mark)).convert("L")
    return same.point(lambda value: 255 if value else 0)


def cut_out(file: Path) -> Image.Image | None:
    """Return the drawing of `file` as RGBA, cropped to what is drawn; None for one in the colour of its background."""
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    mask = silhouette(picture)
    box = mask.getbbox()
    if box is None or sum(mask.crop(box).histogram()[255:]) < SOLID * (box[2] - box[0]) * (box[3] - box[1]):
        return None
    soft = mask.filter(ImageFilter.MinFilter(3)).filter(ImageFilter.GaussianBlur(0.6))
    picture.putalpha(soft)
    return picture.crop(box)


def arranged(drawing: Image.Image, colour: tuple[int, int, int], rng: random.Random) -> tuple[Image.Image, Image.Image]:
    """Return the picture, and its silhouette, of `drawing` at a random place in a random size."""
    longest = rng.uniform(0.38, 0.8) * SIDE
    scale = longest / max(drawing.size)
    shape = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else drawing
    shape = shape.resize((round(shape.width * scale), round(shape.height * scale)), Image.Resampling.LANCZOS)
    place = (rng.randint(2, SIDE - 2 - shape.width), rng.randint(2, SIDE - 2 - shape.height))
    picture = Image.new("RGB", (SIDE, SIDE), colour)
    picture.paste(shape, place, shape)
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(shape.getchannel("A").point(lambda value: 255 if value > 127 else 0), place)
    return picture, mask


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=Path("dsctl_core/assets/datasets"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=480)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    drawings: dict[str, list[Image.Image]] = {}
    for table in sorted(given.source.glob("*/metadata.csv")):
        with table.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                words, _, background = row["prompt"].partition(" on a ")
                plain = background.endswith(" background") and background.removesuffix(" background") in COLOURS
                if plain and "image" in row:  # not a dataset of clips
                    subject = words.removesuffix(" on the left").removesuffix(" on the right")
                    drawing = cut_out(table.parent / row["image"])
                    drawings.setdefault(subject, []).extend([drawing] if drawing is not None else [])
    drawings = {word: found for word, found in drawings.items() if found and word != "a small robot"}
    (given.output / "control").mkdir(parents=True)
    with (given.output / "metadata.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "control_image", "prompt"])
        for number in range(given.count):
            subject, colour = rng.choice(list(drawings)), rng.choice(list(COLOURS))
            picture, mask = arranged(rng.choice(drawings[subject]), COLOURS[colour], rng)
            name = f"{number:04}.png"
            picture.save(given.output / name)
            mask.convert("RGB").save(given.output / "control" / name)
            writer.writerow([name, f"control/{name}", f"{subject} on a {colour} background"])


if __name__ == "__main__":
    main()
