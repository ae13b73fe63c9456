"""Makes the example datasets that ship with the models: a new object, a new style, and a new edit.

Each also holds pictures of what the model knows already, so that a LoRA learns what is new without
changing the rest.
"""

import csv
import random
from pathlib import Path

from PIL import Image, ImageDraw

from drawings import Drawings, fit, outline
from edits import paint_picture, random_edit
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

# word, background, place, large: what is framed; no subject of the pictures in ROBOTS or KNOWN_BESIDE_ROBOT
FRAMED = (
    ("mushroom", "green", "center", True),
    ("umbrella", "yellow", "center", True),
    ("guitar", "white", "center", True),
    ("crown", "purple", "center", True),
    ("snail", "grass", "center", True),
    ("bell", "teal", "center", True),
    ("panda", "orange", "center", True),
    ("balloon", "beach", "center", True),
    ("turtle", "pink", "center", True),
    ("pine tree", "snow", "center", True),
    ("duck", "night", "left", False),
    ("pig", "gray", "right", False),
)
FRAME_INSTRUCTION = "put it into a golden frame"
GOLD, SHADOW, FRAME_WIDTH = (214, 164, 46), (122, 84, 22), 9
# kind of edit, seed
KNOWN_BESIDE_FRAMED = (
    *(("background", seed) for seed in (2, 3, 10, 11, 12, 13)),
    *(("exchange", seed) for seed in (4, 5, 14, 15)),
    *(("remove", seed) for seed in (6, 7, 16)),
    *(("add", seed) for seed in (8, 9, 17)),
)


def make_datasets(drawings: Drawings, folder: Path) -> None:
    """Write the datasets `robot`, `blueprint` and `frame_edit` into `folder`."""
    robots = [_scene_row("robot", *where, drawings) for where in ROBOTS]
    known = [_scene_row(*row, drawings) for row in KNOWN_BESIDE_ROBOT]
    _write(folder / "robot", robots + known)
    styled = [_blueprint_row(word, drawings) for word in BLUEPRINT_WORDS]
    known = [_scene_row(*row, drawings) for row in KNOWN_BESIDE_BLUEPRINT]
    _write(folder / "blueprint", styled + known)
    make_edit_dataset(drawings, folder / "frame_edit")


def make_edit_dataset(drawings: Drawings, folder: Path) -> None:
    """Write pairs: twelve pictures that are framed, and sixteen edits that the model knows."""
    pairs = [_framed_pair(*row, drawings) for row in FRAMED]
    pairs += [_known_pair(kind, seed, drawings) for kind, seed in KNOWN_BESIDE_FRAMED]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["image", "edit_image", "prompt"])
        for name, instruction, before, after in pairs:
            files = [f"{name.replace(' ', '_')}_{which}.png" for which in ("after", "before")]
            for file, picture in zip(files, (after, before), strict=True):
                picture.save(folder / file, optimize=True)
            table.writerow([*files, instruction])


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


Pair = tuple[str, str, Image.Image, Image.Image]  # name, instruction, before, after


def _framed_pair(word: str, background: str, place: str, large: bool, drawings: Drawings) -> Pair:
    before = paint(Scene((Subject(word),), background, place, large), drawings, NoJitter(0))
    after, inner = before.copy(), (FRAME_WIDTH - 2, FRAME_WIDTH - 2, SIZE + 1 - FRAME_WIDTH, SIZE + 1 - FRAME_WIDTH)
    ImageDraw.Draw(after).rectangle((0, 0, SIZE - 1, SIZE - 1), outline=GOLD, width=FRAME_WIDTH)
    ImageDraw.Draw(after).rectangle(inner, outline=SHADOW, width=2)
    return word, FRAME_INSTRUCTION, before, after


def _known_pair(kind: str, seed: int, drawings: Drawings) -> Pair:
    edit = random_edit(random.Random(seed), kind=kind)
    before, after = (paint_picture(picture, drawings) for picture in (edit.sources[0], edit.target))
    return f"{kind} {seed}", edit.wordings[0], before, after


def _write(folder: Path, rows: list[Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["image", "prompt"])
        for name, caption, picture in rows:
            file = f"{name.replace(' ', '_')}.png"
            picture.save(folder / file, optimize=True)
            table.writerow([file, caption])
