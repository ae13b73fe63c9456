"""The world of the embedded video model: clips of one object that moves on a background, and captions that say so.

An `Action` says what is in a clip; `paint_clip` draws it; `clip_captions` words it. All choices come from the
`random.Random` that is handed in, so a seed gives the same data everywhere.
"""

import math
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from drawings import Drawings, fit
from objects import COLOURS, HELD_OUT, OBJECTS, SCENES, with_article
from scenes import NoJitter, paint_background

SIDE, FRAMES, FPS = 64, 17, 8
OBJECT_SIZE = 0.5  # longer side of a drawing, in parts of the canvas
SUPERSAMPLING = 2

ACTORS = (
    *("fox", "frog", "penguin", "whale", "apple", "banana"),
    *("strawberry", "mushroom", "sunflower", "car", "house", "ghost"),
)
BACKGROUNDS = ("blue", "yellow", "white", "pink", "grass", "beach")

# motion -> how captions say it, the plainest first
MOTIONS = {
    "left": ("moves to the left", "moves left", "goes to the left"),
    "right": ("moves to the right", "moves right", "goes to the right"),
    "up": ("moves up", "goes up"),
    "jump": ("jumps", "jumps up and down"),
    "grow": ("grows", "gets bigger"),
    "turn": ("turns on its side", "turns over"),
}
# Never in the base's data, so that a LoRA can teach them as something new.
NEW_MOTIONS = {"circle": ("moves in a circle",), "shrink": ("shrinks",), "down": ("moves down",)}


@dataclass(frozen=True)
class Pose:
    """Where a drawing is in one frame: its centre in parts of the canvas, its size and its turn in radians."""

    x: float = 0.5
    y: float = 0.5
    scale: float = 1.0
    angle: float = 0.0


# motion -> the pose at a time in [0, 1], the middle of all that are drawn
PATHS: dict[str, Callable[[float], Pose]] = {
    "still": lambda t: Pose(),
    "left": lambda t: Pose(x=0.68 - 0.36 * t),
    "right": lambda t: Pose(x=0.32 + 0.36 * t),
    "up": lambda t: Pose(y=0.68 - 0.36 * t),
    "jump": lambda t: Pose(y=0.67 - 0.34 * math.sin(math.pi * t)),
    "grow": lambda t: Pose(scale=0.55 + 0.8 * t),
    "turn": lambda t: Pose(angle=math.pi / 2 * t),
    "circle": lambda t: Pose(x=0.5 + 0.17 * math.sin(2 * math.pi * t), y=0.5 - 0.17 * math.cos(2 * math.pi * t)),
    "shrink": lambda t: Pose(scale=1.35 - 0.8 * t),
    "down": lambda t: Pose(y=0.32 + 0.36 * t),
}
# how far a path is moved at most, sideways and upright, in parts of the canvas
ASIDE = {"left": (0.0, 0.04), "right": (0.0, 0.04), "up": (0.04, 0.0), "jump": (0.04, 0.0)}


@dataclass(frozen=True)
class Action:
    """A clip in words: an object, what it does ("still" in a picture), and where."""

    word: str
    motion: str
    background: str


def held_back(action: Action) -> bool:
    """Say whether an action is kept out of training, so that prompts for it test composition: one in ten."""
    return zlib.crc32(f"{action.word}|{action.motion}|{action.background}".encode()) % 10 == 0


def every_action(*, unseen: bool = False) -> list[Action]:
    """Return all actions that training shows, or all that it never shows."""
    every = [Action(word, motion, where) for word in ACTORS for motion in MOTIONS for where in BACKGROUNDS]
    return [action for action in every if held_back(action) == unseen]


def clip_captions(action: Action) -> list[str]:
    """Word an action in all its ways, the plainest first."""
    where = SCENES.get(action.background, f"on a {action.background} background")
    said = (MOTIONS | NEW_MOTIONS).get(action.motion, ("",))
    return [" ".join(f"{with_article(action.word)} {words} {where}".split()) for words in said]


def paint_clip(action: Action, drawings: Drawings, rng: random.Random, frames: int = FRAMES) -> np.ndarray:
    """Draw an action as frames (T, SIDE, SIDE, 3) of bytes; a `NoJitter` draws it in the middle of all ways."""
    sideways, upright = ASIDE.get(action.motion, (0.02, 0.02))
    shift = (rng.uniform(-1, 1) * sideways, rng.uniform(-1, 1) * upright)
    size, pace, start = rng.uniform(0.97, 1.03), rng.uniform(0.97, 1.03), rng.uniform(-0.01, 0.01)
    poses = []
    for frame in range(frames):
        pose = PATHS[action.motion](start + (frame / max(1, frames - 1) - 0.5) * pace + 0.5 if frames > 1 else 0.5)
        poses.append(Pose(pose.x + shift[0], pose.y + shift[1], pose.scale * size, pose.angle))
    drawing = drawings.render((OBJECTS | HELD_OUT)[action.word])
    return paste_along(drawing, poses, background_picture(action.background))


def background_picture(name: str) -> Image.Image:
    """Draw a background of `SIDE` pixels."""
    if name in COLOURS:
        return Image.new("RGB", (SIDE, SIDE), COLOURS[name])
    return paint_background(name, NoJitter(0)).resize((SIDE, SIDE), Image.Resampling.BOX)


def paste_along(drawing: Image.Image, poses: list[Pose], background: Image.Image) -> np.ndarray:
    """Paste a drawing (RGBA) at each pose onto a background: frames (T, SIDE, SIDE, 3) of bytes."""
    fine = SIDE * SUPERSAMPLING
    # scaled down to about the size that it is drawn at, so that sampling between its pixels leaves none out
    usual = sum(pose.scale for pose in poses) / len(poses) * OBJECT_SIZE
    sprite = _as_square(fit(drawing, round(fine * usual)))
    pixels = torch.from_numpy(np.array(sprite.convert("RGBa"))).permute(2, 0, 1).float()
    places = torch.stack([_canvas_to_sprite(pose) for pose in poses])
    grid = F.affine_grid(places, [len(poses), 4, fine, fine], align_corners=False)
    drawn = F.grid_sample(pixels.expand(len(poses), -1, -1, -1), grid, align_corners=False)
    drawn = F.avg_pool2d(drawn, SUPERSAMPLING)
    behind = torch.from_numpy(np.array(background)).permute(2, 0, 1).float()
    clip = drawn[:, :3] + behind * (1 - drawn[:, 3:] / 255)
    return clip.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def _as_square(picture: Image.Image) -> Image.Image:
    """Centre a drawing on a transparent square with a pixel of room on each side."""
    side = max(picture.size) + 2
    square = Image.new("RGBA", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def _canvas_to_sprite(pose: Pose) -> Tensor:
    """Return the map (2, 3) from places on the canvas to those on the sprite, both in [-1, 1], for `affine_grid`."""
    x, y, part = 2 * pose.x - 1, 2 * pose.y - 1, 1 / (pose.scale * OBJECT_SIZE)
    cos, sin = math.cos(pose.angle) * part, math.sin(pose.angle) * part
    return torch.tensor([[cos, sin, -(cos * x + sin * y)], [-sin, cos, sin * x - cos * y]])
