"""Puts the clips of two folders into one animated GIF, a row before and a row after, and into a contact sheet."""

import argparse
from pathlib import Path

from PIL import Image, ImageSequence

from grid import compose

SHEET_STEP = 2  # the contact sheet has every second frame


def read(folder: Path, count: int) -> tuple[list[list[Image.Image]], int]:
    """Return the frames of the clips of `folder` in order, of which there must be `count`, and their milliseconds."""
    files = sorted(folder.glob("*.gif"))
    if len(files) != count:
        raise SystemExit(f"error: {folder} has {len(files)} clips for {count} prompts")
    clips = []
    for file in files:
        with Image.open(file) as clip:
            duration = clip.info["duration"]
            clips.append([frame.convert("RGB") for frame in ImageSequence.Iterator(clip)])
    return clips, duration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("before", "after", "prompts", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    captions = [line for line in given.prompts.read_text(encoding="utf-8").split("\n") if line.strip()]
    clips = {}
    for name, folder in (("before", given.before), ("after", given.after)):
        clips[name], duration = read(folder, len(captions))

    frames = len(clips["before"][0])
    moments = [
        compose({name: [clip[i] for clip in several] for name, several in clips.items()}, captions)
        for i in range(frames)
    ]
    moments[0].save(
        given.output / "comparison.gif", save_all=True, append_images=moments[1:], duration=duration, loop=0
    )

    shown = range(0, frames, SHEET_STEP)
    rows = {
        f"{number + 1} {name}": [clips[name][number][i] for i in shown]
        for number in range(len(captions))
        for name in clips
    }
    compose(rows, [f"frame {i + 1}" for i in shown]).save(given.output / "sheet.png")


if __name__ == "__main__":
    main()
