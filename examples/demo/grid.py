"""Puts the pictures of folders into one labelled grid: a row before, a row after, the prompts below.

Where pictures were edited, they are a row above both, and a line of the prompts is "PICTURE: INSTRUCTION".
"""

import argparse
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIDE, GAP, MARGIN = 192, 12, 96  # pixels: a picture, the space between two, the room for the rows' labels
INK, PAPER = (30, 30, 30), (255, 255, 255)


def compose(rows: dict[str, list[Image.Image]], captions: list[str]) -> Image.Image:
    """Return a picture with a labelled row for each entry of `rows` and a caption below each column."""
    font, lines = ImageFont.load_default(size=17), [textwrap.wrap(caption, width=20) for caption in captions]
    line_height = 22
    width = MARGIN + len(captions) * (SIDE + GAP)
    height = GAP + len(rows) * (SIDE + GAP) + max(map(len, lines)) * line_height + GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, (label, pictures) in enumerate(rows.items()):
        top = GAP + row * (SIDE + GAP)
        draw.text((MARGIN / 2, top + SIDE / 2), label, fill=INK, font=font, anchor="mm")
        for column, picture in enumerate(pictures):
            enlarged = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (MARGIN + column * (SIDE + GAP), top))
    top = GAP + len(rows) * (SIDE + GAP)
    for column, caption in enumerate(lines):
        centre = MARGIN + column * (SIDE + GAP) + SIDE / 2
        draw.multiline_text((centre, top), "\n".join(caption), fill=INK, font=font, anchor="ma", align="center")
    return sheet


def read(folder: Path, count: int) -> list[Image.Image]:
    """Return the pictures of `folder` in order; there must be `count`."""
    files = sorted(folder.glob("*.png"))
    if len(files) != count:
        raise SystemExit(f"error: {folder} has {len(files)} pictures for {count} prompts")
    pictures = []
    for file in files:
        with Image.open(file) as picture:
            pictures.append(picture.convert("RGB"))
    return pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("before", "after", "prompts", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--source", type=Path, help="the pictures that were edited")
    given = parser.parse_args()
    captions = given.prompts.read_text(encoding="utf-8").split("\n")
    captions = [caption for caption in captions if caption.strip()]
    folders = {"before": given.before, "after": given.after}
    if given.source:
        captions = [caption.split(": ", 1)[1] for caption in captions]
        folders = {"picture": given.source, **folders}
    rows = {name: read(folder, len(captions)) for name, folder in folders.items()}
    compose(rows, captions).save(given.output)


if __name__ == "__main__":
    main()
