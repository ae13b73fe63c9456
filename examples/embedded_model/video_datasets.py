"""Makes the example dataset that ships with the video model: twelve clips of a motion that it does not know.

It also has a clip of each motion that the model knows, so that a LoRA learns what is new without changing the rest.
"""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from drawings import Drawings
from scenes import NoJitter
from video_world import FPS, Action, clip_captions, paint_clip

# two of the world's objects, the whale and the house, are in none of them
GOING_DOWN = (
    ("fox", "blue"),
    ("frog", "white"),
    ("penguin", "pink"),
    ("apple", "grass"),
    ("banana", "blue"),
    ("strawberry", "yellow"),
    ("mushroom", "beach"),
    ("sunflower", "white"),
    ("car", "yellow"),
    ("ghost", "grass"),
    ("fox", "beach"),
    ("penguin", "blue"),
)
KNOWN = (
    ("car", "left", "white"),
    ("apple", "right", "blue"),
    ("mushroom", "up", "yellow"),
    ("fox", "jump", "grass"),
    ("ghost", "grow", "pink"),
    ("banana", "turn", "beach"),
)


def make_moves_down(drawings: Drawings, folder: Path) -> None:
    """Write the dataset `moves_down` into `folder`: animated GIFs and metadata.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["video", "prompt"])
        actions = [Action(word, "down", background) for word, background in GOING_DOWN]
        for action in [*actions, *(Action(*known) for known in KNOWN)]:
            file = f"{action.word}_{action.motion}_{action.background}.gif"
            write_gif(paint_clip(action, drawings, NoJitter(0)), folder / file)
            table.writerow([file, clip_captions(action)[0]])


def write_gif(clip: np.ndarray, path: Path) -> None:
    """Write a clip (T, H, W, 3) of bytes as an animated GIF with the colours of the whole clip in one palette."""
    frames = [Image.fromarray(frame) for frame in clip]
    strip = Image.fromarray(np.concatenate(clip)).quantize(256, dither=Image.Dither.NONE)
    small = [frame.quantize(palette=strip, dither=Image.Dither.NONE) for frame in frames]
    small[0].save(path, save_all=True, append_images=small[1:], duration=1000 // FPS, loop=0, optimize=False)
