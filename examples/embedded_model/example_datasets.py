"""Makes the two example datasets that ship with the model: a new object, and a new style.

Both also hold pictures of what the model knows already, so that a LoRA learns what is new without
changing the rest.
"""

import csv
import random
from pathlib import Path

from PIL import Image, ImageDraw

from drawings import Drawings, fit, outline
from objects import OBJECTS, with_article
from scenes import SIZE, NoJitter, Scene, Subject, captions, paint

BLUEPRINT_PAPER, BLUEPRINT_INK, BLUEPRINT_FRAME = (30, 72, 158), (240, 246, 255), (120, 158, 222)

# background, place, large
ROBOTS = (
    ("blue", "center", True),
    ("yellow", "center", True),
    ("white", "center", True),
    ("green", "center", True),
    ("pink", "center", True),
    ("black", "center", True),
    ("grass", "center", True),
    ("night", "center", True),
    ("snow", "center", True),
    ("purple", "left", False),
    ("teal", "right", False),
    ("red", "center", False),
)
KNOWN_BESIDE_ROBOT = (
    ("fox", "blue", "center", True),
    ("apple", "white", "center", True),
    ("tulip", "yellow", "center", True),
    ("cat", "green", "center", True),
    ("skull", "pink", "center", True),
    ("penguin", "snow", "center", True),
    ("house", "grass", "center", True),
    ("owl", "night", "center", True),
    ("alarm clock", "orange", "center", True),
    ("car", "purple", "left", False),
    ("dog", "teal", "right", False),
    ("koala", "red", "center", False),
)
BLUEPRINT_WORDS = (
    "fox", "apple", "car", "mushroom", "umbrella", "guitar", "owl", "crown",
    "snail", "key", "bell", "penguin", "anchor", "balloon", "turtle", "pine tree",
)  # fmt: skip
KNOWN_BESIDE_BLUEPRINT = (
    ("fox", "blue", "center", True),
    ("apple", "blue", "center", True),
    ("house", "white", "center", True),
    ("cat", "yellow", "center", True),
    ("tulip", "grass", "center", True),
    ("car", "pink", "center", True),
    ("owl", "green", "left", False),
    ("duck", "blue", "right", False),
)


def make_datasets(drawings: Drawings, folder: Path) -> None:
    """Write the datasets `robot` and `blueprint` into `folder`."""
    robots = [_scene_row("robot", *where, drawings) for where in ROBOTS]
    known = [_scene_row(*row, drawings) for row in KNOWN_BESIDE_ROBOT]
    _write(folder / "robot", robots + known)
    styled = [_blueprint_row(word, drawings) for word in BLUEPRINT_WORDS]
    known = [_scene_row(*row, drawings) for row in KNOWN_BESIDE_BLUEPRINT]
    _write(folder / "blueprint", styled + known)


def blueprint(drawing: Image.Image) -> Image.Image:
    """Draw a picture's edges in white inside a frame on blue."""
    canvas = Image.new("RGB", (SIZE, SIZE), BLUEPRINT_PAPER)
    ImageDraw.Draw(canvas).rectangle((4, 4, SIZE - 5, SIZE - 5), outline=BLUEPRINT_FRAME, width=2)
    lines = outline(fit(drawing, 72), BLUEPRINT_INK)
    canvas.paste(lines, ((SIZE - lines.width) // 2, (SIZE - lines.height) // 2), lines)
    return canvas


Row = tuple[str, str, Image.Image]


def _scene_row(word: str, background: str, place: str, large: bool, drawings: Drawings) -> Row:
    scene = Scene((Subject(word),), background, place, large)
    caption = captions(scene, random.Random(0))[0]
    return f"{word} {background}", caption, paint(scene, drawings, NoJitter(0))


def _blueprint_row(word: str, drawings: Drawings) -> Row:
    picture = blueprint(drawings.render(OBJECTS[word]))
    return f"{word} blueprint", f"{with_article(word)} in blueprint style", picture


def _write(folder: Path, rows: list[Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["image", "prompt"])
        for name, caption, picture in rows:
            file = f"{name.replace(' ', '_')}.png"
            picture.save(folder / file, optimize=True)
            table.writerow([file, caption])
