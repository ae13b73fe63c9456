"""Draws held-out arrangements without and with the control network, and measures how well the silhouettes are followed.

The measure is the intersection over the union of two masks: the silhouette that was asked for, and that of the picture.
"""

import argparse
import csv
from pathlib import Path

import torch
from PIL import Image, ImageChops, ImageDraw, ImageFont

from data import silhouette
from dsctl_core.control import ControlUse
from dsctl_core.families.controlnets import load_controlnet
from dsctl_core.families.resolve import resolve_model

SIDE, GAP, MARGIN, SHOWN = 144, 8, 130, 8  # pixels; arrangements in the grid
SCALES = (0.0, 0.5, 1.0)
INK, PAPER = (30, 30, 30), (255, 255, 255)


def overlap(one: Image.Image, other: Image.Image) -> float:
    """Return the intersection over the union of two masks ("L", 0 or 255); 0 for two empty ones."""
    both, any_ = (area(combine(one, other)) for combine in (ImageChops.darker, ImageChops.lighter))
    return both / any_ if any_ else 0.0


def area(mask: Image.Image) -> int:
    """Return the number of white pixels."""
    return sum(mask.histogram()[128:])


def grid(rows: dict[str, list[Image.Image]], captions: list[str]) -> Image.Image:
    """Return a labelled row for each entry of `rows`, with a caption below each column."""
    font = ImageFont.load_default(size=14)
    size = (MARGIN + len(captions) * (SIDE + GAP), GAP + len(rows) * (SIDE + GAP) + 44)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, (label, pictures) in enumerate(rows.items()):
        top = GAP + row * (SIDE + GAP)
        draw.multiline_text((MARGIN / 2, top + SIDE / 2), label, fill=INK, font=font, anchor="mm", align="center")
        for column, picture in enumerate(pictures):
            enlarged = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (MARGIN + column * (SIDE + GAP), top))
    for column, caption in enumerate(captions):
        place = (MARGIN + column * (SIDE + GAP) + SIDE / 2, size[1] - 44)
        draw.multiline_text(place, caption.replace(" on ", "\non "), fill=INK, font=font, anchor="ma", align="center")
    return sheet


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("controlnet", "data", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with (given.data / "metadata.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    wanted = [Image.open(given.data / row["control_image"]).convert("L") for row in rows]
    pipe = resolve_model(given.model).load_pipeline(torch_dtype=torch.float32, device="cpu")
    name = load_controlnet(pipe, str(given.controlnet))
    drawn: dict[str, list[Image.Image]] = {"control": list(wanted)}
    for scale in SCALES:
        pictures = pipe(
            [row["prompt"] for row in rows],
            seed=[given.seed + number for number in range(len(rows))],
            control_inputs={"control_image": [mask.convert("RGB") for mask in wanted]},
            controls={name: ControlUse(scale)},
        )
        scores = [overlap(silhouette(picture), mask) for picture, mask in zip(pictures, wanted, strict=True)]
        mean = sum(scores) / len(scores)
        label = f"scale {scale:g}" if scale else "without"
        drawn[f"{label}\nIoU {mean:.2f}"] = pictures
        print(f"{label}: mean IoU {mean:.3f}, lowest {min(scores):.3f}, of {len(scores)} pictures")
    captions = [row["prompt"] for row in rows[:SHOWN]]
    grid({label: pictures[:SHOWN] for label, pictures in drawn.items()}, captions).save(given.output)
    print(f"wrote {given.output}")


if __name__ == "__main__":
    main()
