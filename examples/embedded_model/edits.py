"""Composes edits: pictures, an instruction, and the picture that follows from both, alike in all that is not edited.

Every part of a `Picture` has a seed of its own, so that what two pictures have in common is drawn the
same, pixel by pixel.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from PIL import Image

from drawings import Drawings
from objects import COLOURS, PLACES, SCENES, never_shown_on
from scenes import (
    HALF,
    LARGE,
    PAIRED,
    Scene,
    Subject,
    capitalized,
    paint_background,
    paste_subject,
    random_background,
    random_scene,
    random_subject,
    small,
)


@dataclass(frozen=True)
class Placed:
    """A subject at a place, `size` parts of the canvas large; `seed` decides its exact place and size."""

    subject: Subject
    place: str
    size: float
    seed: int


@dataclass(frozen=True)
class Picture:
    """What a picture holds; `seed` decides where a background has its stars."""

    background: str
    subjects: tuple[Placed, ...]
    seed: int


@dataclass(frozen=True)
class Edit:
    """One or two pictures, the picture that is asked for, and several ways to ask for it.

    `slot` is the place in `target.subjects` of the subject that is new, if there is one.
    """

    kind: str
    sources: tuple[Picture, ...]
    target: Picture
    wordings: tuple[str, ...]
    slot: int | None = None


def paint_picture(picture: Picture, drawings: Drawings) -> Image.Image:
    """Draw a picture as RGB; equal parts of two pictures have equal pixels."""
    canvas = paint_background(picture.background, random.Random(picture.seed))
    for each in picture.subjects:
        paste_subject(canvas, each.subject, each.place, each.size, drawings, random.Random(each.seed))
    return canvas


def random_edit(rng: random.Random, *, kind: str | None = None, unseen: bool = False) -> Edit:
    """Choose an edit of the base's world; the target of an `unseen` one has only pairs kept out of training."""
    if kind is None:
        kind = rng.choices(tuple(KINDS), [share for share, _ in KINDS.values()])[0]
    edit = KINDS[kind][1](rng, unseen)
    worded = [capitalized(text) if rng.random() < 0.25 else text for text in edit.wordings]
    return replace(edit, kind=kind, wordings=tuple(worded))


def _change_background(rng: random.Random, unseen: bool) -> Edit:
    target = _random_picture(rng, unseen)
    source = replace(target, background=_other_background(rng, target), seed=rng.getrandbits(32))
    name = target.background
    what = _subjects(target) if rng.random() < 0.5 else "it" if len(target.subjects) == 1 else "them"
    behind = SCENES.get(name, f"on {_with_article(name)} background")
    as_noun = {"grass": "grass", "night": "the night sky", "beach": "the beach", "snow": "snow"}.get(name, name)
    wordings = (
        f"change the background to {as_noun}",
        f"make the background {as_noun}",
        f"put {what} {behind}",
        f"the same picture {behind}",
    )
    return Edit("", (source,), target, wordings)


def _exchange(rng: random.Random, unseen: bool) -> Edit:
    target = _random_picture(rng, unseen)
    slot = rng.randrange(len(target.subjects))
    taken = {each.subject for each in target.subjects}
    old = _other_subject(rng, target.background, taken)
    placed = list(target.subjects)
    new, placed[slot] = placed[slot].subject, replace(placed[slot], subject=old)
    before = the(old)
    wordings = (
        f"replace {before} with {new}",
        f"turn {before} into {new}",
        f"swap {before} for {new}",
        f"make {before} {new}",
    )
    return Edit("", (replace(target, subjects=tuple(placed)),), target, wordings, slot)


def _remove(rng: random.Random, unseen: bool) -> Edit:
    full, slot = _picture_to_split(rng, unseen)
    gone = the(full.subjects[slot].subject)
    wordings = (f"remove {gone}", f"take {gone} away", f"erase {gone}", f"delete {gone}")
    return Edit("", (full,), _without(full, slot), wordings)


def _add(rng: random.Random, unseen: bool) -> Edit:
    full, slot = _picture_to_split(rng, unseen)
    new, place = full.subjects[slot], full.subjects[slot].place
    where = f" {PLACES[place][1]}" if place != "center" else ""
    name = small(str(new.subject)) if new.size == HALF else str(new.subject)
    wordings = [f"{verb} {name}{where}" for verb in ("add", "draw", "put")]
    if len(full.subjects) == 2:
        other = the(full.subjects[1 - slot].subject)
        near = {"left": "next to", "right": "next to", "top": "above", "bottom": "below"}[place]
        wordings.append(f"add {name} {near} {other}")
    else:
        wordings.append(f"there should be {name}{where}")
    return Edit("", (_without(full, slot),), full, tuple(wordings), slot)


def _combine(rng: random.Random, unseen: bool) -> Edit:
    target = _random_picture(rng, unseen)
    first = replace(target, background=_other_background(rng, target), seed=rng.getrandbits(32))
    while True:
        second = _random_picture(rng, False)
        if second.background == target.background:
            second = replace(second, seed=target.seed)
            break
        second = replace(second, background=target.background, seed=target.seed)
        if all(_may_stand(each.subject, target.background) for each in second.subjects):
            break
    wordings = (
        "put picture 1 on the background of picture 2",
        f"put {_subjects(target)} on the background of picture 2",
        "use the background of picture 2",
        "picture 1 with the background of picture 2",
    )
    return Edit("", (first, second), target, wordings)


# What an edit does -> its share of the training data, and how one is made.
KINDS: dict[str, tuple[float, Callable[[random.Random, bool], Edit]]] = {
    "background": (0.26, _change_background),
    "exchange": (0.28, _exchange),
    "remove": (0.15, _remove),
    "add": (0.19, _add),
    "combine": (0.12, _combine),
}


def _random_picture(rng: random.Random, unseen: bool) -> Picture:
    return _of_scene(random_scene(rng, unseen=unseen), rng)


def _of_scene(scene: Scene, rng: random.Random) -> Picture:
    places, size = [scene.place], LARGE if scene.large else HALF
    if len(scene.subjects) == 2:
        places, size = scene.place.split("+"), PAIRED
    placed = [Placed(s, p, size, rng.getrandbits(32)) for s, p in zip(scene.subjects, places, strict=True)]
    return Picture(scene.background, tuple(placed), rng.getrandbits(32))


def _picture_to_split(rng: random.Random, unseen: bool) -> tuple[Picture, int]:
    """Return a picture and which of its subjects comes or goes: mostly one of two."""
    wanted = 2 if rng.random() < 0.75 else 1
    scene = random_scene(rng, unseen=unseen)
    while len(scene.subjects) != wanted:
        scene = random_scene(rng, unseen=unseen)
    return _of_scene(scene, rng), rng.randrange(wanted)


def _without(picture: Picture, slot: int) -> Picture:
    return replace(picture, subjects=picture.subjects[:slot] + picture.subjects[slot + 1 :])


def _may_stand(subject: Subject, background: str) -> bool:
    """Say whether training may show this subject on this background."""
    return subject.colour != background and not never_shown_on(str(subject), background)


def _other_background(rng: random.Random, picture: Picture) -> str:
    while True:
        name = random_background(rng)
        if name != picture.background and all(_may_stand(each.subject, name) for each in picture.subjects):
            return name


def _other_subject(rng: random.Random, background: str, taken: set[Subject]) -> Subject:
    while True:
        subject = random_subject(rng)
        if subject not in taken and _may_stand(subject, background):
            return subject


def the(subject: Subject) -> str:
    """Word a subject that is there already: "the fox"."""
    name = str(subject)
    for article in ("a ", "an ", "the "):
        name = name.removeprefix(article) if name.startswith(article) else name
    return f"the {name}"


def _subjects(picture: Picture) -> str:
    return " and ".join(the(each.subject) for each in picture.subjects)


def _with_article(colour: str) -> str:
    return f"an {colour}" if colour in COLOURS and colour[0] in "aeio" else f"a {colour}"
