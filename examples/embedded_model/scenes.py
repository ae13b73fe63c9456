"""Composes the training pictures: one or two subjects on a background, and captions that say so.

A `Scene` says what is in a picture; `paint` draws it; `captions` words it. All choices come from the
`random.Random` that is handed in, so a seed gives the same data everywhere.
"""

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from drawings import Drawings, fit
from objects import COLOURS, HELD_OUT, OBJECTS, PLACES, SCENES, SHAPES, never_shown_on, with_article

SIZE = 96
LARGE, HALF, PAIRED = 0.84, 0.50, 0.44
SUPERSAMPLING = 4


class NoJitter(random.Random):
    """Draws the middle of every range, for pictures that only say what was asked for."""

    def uniform(self, a: float, b: float) -> float:
        """Return the middle."""
        return (a + b) / 2


@dataclass(frozen=True)
class Subject:
    """What is drawn: an object's word, or a shape with a colour."""

    word: str
    colour: str | None = None

    def __str__(self) -> str:
        return with_article(f"{self.colour} {self.word}" if self.colour else self.word)


@dataclass(frozen=True)
class Scene:
    """A picture in words: one subject at a place, or two beside or above each other."""

    subjects: tuple[Subject, ...]
    background: str
    place: str = "center"
    large: bool = True


def paint(scene: Scene, drawings: Drawings, rng: random.Random) -> Image.Image:
    """Draw a scene as an RGB picture of `SIZE` pixels."""
    canvas = paint_background(scene.background, rng)
    if len(scene.subjects) == 2:
        places, size = scene.place.split("+"), PAIRED
    else:
        places, size = [scene.place], LARGE if scene.large else HALF
    for subject, place in zip(scene.subjects, places, strict=True):
        paste_subject(canvas, subject, place, size, drawings, rng)
    return canvas


def paste_subject(
    canvas: Image.Image, subject: Subject, place: str, size: float, drawings: Drawings, rng: random.Random
) -> None:
    """Draw a subject about `size` parts of the canvas large, and about at `place`, onto `canvas`."""
    picture = paint_subject(subject, round(SIZE * size * rng.uniform(0.96, 1.04)), drawings)
    (x, y), _ = PLACES[place]
    left = round(x * SIZE - picture.width / 2 + rng.uniform(-1.5, 1.5))
    top = round(y * SIZE - picture.height / 2 + rng.uniform(-1.5, 1.5))
    canvas.paste(picture, (left, top), picture)


def paint_subject(subject: Subject, pixels: int, drawings: Drawings) -> Image.Image:
    """Draw one subject whose longer side is `pixels`, as an RGBA picture."""
    if subject.colour:
        return paint_shape(subject.word, COLOURS[subject.colour], round(pixels * 0.9))
    return drawings.fitted((OBJECTS | HELD_OUT)[subject.word], pixels)


def paint_shape(shape: str, colour: tuple[int, int, int], pixels: int) -> Image.Image:
    """Draw a plain shape, anti-aliased by drawing it larger first."""
    n = pixels * SUPERSAMPLING
    image = Image.new("RGBA", (n, n))
    draw, fill = ImageDraw.Draw(image), (*colour, 255)
    if shape == "circle":
        draw.ellipse((0, 0, n - 1, n - 1), fill)
    elif shape == "ring":
        draw.ellipse((0, 0, n - 1, n - 1), fill)
        draw.ellipse((n * 0.27, n * 0.27, n * 0.73, n * 0.73), (0, 0, 0, 0))
    elif shape == "square":
        draw.rectangle((n * 0.06, n * 0.06, n * 0.94, n * 0.94), fill)
    elif shape == "cross":
        draw.rectangle((n * 0.33, 0, n * 0.67, n), fill)
        draw.rectangle((0, n * 0.33, n, n * 0.67), fill)
    else:
        draw.polygon([(x * n, y * n) for x, y in _outline(shape)], fill)
    return fit(image, pixels)


def _outline(shape: str) -> list[tuple[float, float]]:
    """Return the corners of a shape, in parts of its square."""
    if shape == "triangle":
        return [(0.5, 0.05), (1.0, 0.93), (0.0, 0.93)]
    if shape == "diamond":
        return [(0.5, 0.0), (0.95, 0.5), (0.5, 1.0), (0.05, 0.5)]
    if shape == "star":
        turns = [(i * math.pi / 5, 0.5 if i % 2 == 0 else 0.21) for i in range(10)]
        return [(0.5 + r * math.sin(a), 0.53 - r * math.cos(a)) for a, r in turns]
    if shape == "heart":
        angles = [i * math.pi / 60 for i in range(120)]
        return [
            (
                0.5 + 0.5 * math.sin(a) ** 3,
                0.46 - (13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a)) / 32,
            )
            for a in angles
        ]
    raise ValueError(f"there is no shape named {shape!r}")


def paint_background(name: str, rng: random.Random) -> Image.Image:
    """Draw one of the four scenes, or a plain colour."""
    if name in COLOURS:
        return Image.new("RGB", (SIZE, SIZE), COLOURS[name])
    sky, ground, horizon = {
        "grass": ((150, 208, 245), (70, 150, 62), 0.62),
        "night": ((16, 20, 62), (40, 36, 92), 1.0),
        "beach": ((130, 205, 245), (226, 194, 130), 0.66),
        "snow": ((172, 192, 222), (244, 247, 252), 0.58),
    }[name]
    line = round(SIZE * horizon)
    canvas = Image.new("RGB", (SIZE, SIZE), sky)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, line, SIZE, SIZE), ground)
    if name == "beach":
        draw.rectangle((0, line - 16, SIZE, line), (44, 122, 190))
    if name in ("night", "snow"):
        for _ in range(14):
            x, y = rng.randrange(SIZE - 2), rng.randrange(line - 2)
            draw.rectangle((x, y, x + 1, y + 1), (240, 240, 250))
    return canvas


def random_scene(rng: random.Random, *, unseen: bool = False) -> Scene:
    """Choose a scene of the base's world; `unseen` ones use only the pairs kept out of training."""
    while True:
        kind = rng.random()
        background = random_background(rng)
        if kind < 0.14:
            first, second = random_subject(rng), random_subject(rng)
            if first == second:
                continue
            place = rng.choice(("left+right", "left+right", "top+bottom"))
            scene = Scene((first, second), background, place)
        elif kind < 0.66:
            scene = Scene((random_subject(rng),), background)
        else:
            place = rng.choice(tuple(PLACES))
            scene = Scene((random_subject(rng),), background, place, large=False)
        if any(subject.colour == background for subject in scene.subjects):
            continue
        shown = [not never_shown_on(str(subject), background) for subject in scene.subjects]
        if not any(shown) if unseen else all(shown):
            return scene


def random_subject(rng: random.Random) -> Subject:
    if rng.random() < 0.16:
        return Subject(rng.choice(SHAPES), rng.choice(tuple(COLOURS)))
    return Subject(rng.choice(tuple(OBJECTS)))


def random_background(rng: random.Random) -> str:
    return rng.choice(tuple(SCENES) if rng.random() < 0.28 else tuple(COLOURS))


def captions(scene: Scene, rng: random.Random, count: int = 3) -> list[str]:
    """Word a scene in up to `count` different ways, the plainest first."""
    behind = SCENES.get(scene.background, f"on a {scene.background} background")
    behind = behind.replace("a orange", "an orange")
    if len(scene.subjects) == 2:
        one, two = map(str, scene.subjects)
        if scene.place == "left+right":
            words = [f"{one} on the left and {two} on the right", f"{one} next to {two}"]
            words += [f"{one} and {two} side by side"]
        else:
            words = [f"{one} at the top and {two} at the bottom", f"{one} above {two}"]
            words += [f"{two} below {one}"]
    else:
        one = str(scene.subjects[0])
        if scene.large:
            words = [one, one, one.replace(" ", " big ", 1) if one.startswith("a") else one]
        elif scene.place == "center":
            words = [small(one), f"{small(one)} in the center"]
        else:
            said = PLACES[scene.place][1]
            words = [f"{one} {said}", f"{small(one)} {said}"]
    plain = f"{words[0]} {behind}"
    others = [f"{word} {behind}" for word in words[1:]]
    others += [f"{words[0]} {behind}, flat style", f"a drawing of {words[0]} {behind}"]
    if scene.background in COLOURS:
        others.append(f"{words[0]}, {scene.background} background")
    if len(scene.subjects) == 1 and scene.large:
        others.append(words[0])
    others = [text for text in dict.fromkeys(others) if text != plain]
    chosen = rng.sample(others, min(count - 1, len(others)))
    return [plain, *(capitalized(text) if rng.random() < 0.25 else text for text in chosen)]


def capitalized(text: str) -> str:
    return text[0].upper() + text[1:]


def small(words: str) -> str:
    """Say that a subject is small: "an owl" becomes "a small owl"."""
    for article in ("a ", "an "):
        if words.startswith(article):
            return f"a small {words.removeprefix(article)}"
    return f"the small {words.removeprefix('the ')}" if words.startswith("the ") else f"small {words}"
