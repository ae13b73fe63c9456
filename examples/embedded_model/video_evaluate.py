"""Measures how well the video model follows prompts that were kept out of its training, and draws a contact sheet.

A sample is compared with plain drawings of what was asked for and of everything else that could have been: motion,
object and background count as right when the right one is the nearest.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from drawings import Drawings, fetch
from scenes import NoJitter
from video_world import (
    ACTORS,
    BACKGROUNDS,
    FRAMES,
    MOTIONS,
    SIDE,
    Action,
    background_picture,
    clip_captions,
    every_action,
    paint_clip,
)

Filmer = Callable[[list[str]], list[np.ndarray]]  # prompts to clips (T, SIDE, SIDE, 3) of bytes

BATCH, STEPS, CFG_SCALE = 8, 20, 3.0
SHEET = (
    Action("fox", "left", "blue"),
    Action("penguin", "right", "yellow"),
    Action("apple", "up", "white"),
    Action("frog", "jump", "pink"),
    Action("car", "grow", "grass"),
    Action("ghost", "turn", "beach"),
    Action("house", "left", "yellow"),
    Action("whale", "jump", "blue"),
)
SHEET_FRAMES = range(0, FRAMES, 2)


class Judge:
    """Compares samples with plain drawings; `drawings` has what they are made of."""

    def __init__(self, drawings: Drawings) -> None:
        self.plain = lru_cache(maxsize=None)(lambda action: _halved(paint_clip(action, drawings, NoJitter(0))))

    def marks(self, action: Action, sample: np.ndarray) -> dict[str, float]:
        """Return the marks of one sample (T, SIDE, SIDE, 3)."""
        seen, wanted = _halved(sample), self.plain(action)
        empty = {name: _halved(np.asarray(background_picture(name))[None]) for name in BACKGROUNDS}
        behind = (np.abs(wanted - empty[action.background]).max(axis=(0, 3)) == 0)[None]  # never covered
        outside = np.broadcast_to(behind, seen.shape[:3])
        far = {name: np.square(seen - picture)[outside].mean() for name, picture in empty.items()}
        inside = np.abs(wanted - empty[action.background]).max(axis=3) > 0
        error = np.square(seen - wanted)[inside].mean()
        return {
            "background": float(min(far, key=far.__getitem__) == action.background),
            "motion": float(self._nearest(action, seen, "motion", MOTIONS) == action.motion),
            "object": float(self._nearest(action, seen, "word", ACTORS) == action.word),
            "psnr_of_object": float(10 * np.log10(255.0**2 / max(error, 1e-3))),
        }

    def _nearest(self, action: Action, seen: np.ndarray, what: str, every: Sequence[str]) -> str:
        """Return which value of the action's field `what` makes the drawing that is nearest to a sample."""
        errors = [np.square(seen - self.plain(dataclasses.replace(action, **{what: value}))).mean() for value in every]
        return list(every)[int(np.argmin(errors))]


def evaluate(filmer: Filmer, drawings: Drawings, actions: Sequence[Action]) -> dict[str, float]:
    """Return the share of right motions (all, and each), objects and backgrounds, and the mean PSNR."""
    judge = Judge(drawings)
    marks: dict[str, list[float]] = {}
    for start in range(0, len(actions), BATCH):
        chosen = actions[start : start + BATCH]
        for action, sample in zip(chosen, filmer([clip_captions(action)[0] for action in chosen]), strict=True):
            own = judge.marks(action, sample)
            own[f"motion_{action.motion}"] = own["motion"]
            for name, value in own.items():
                marks.setdefault(name, []).append(value)
    return {"clips": len(actions)} | {name: round(float(np.mean(of)), 4) for name, of in sorted(marks.items())}


def contact_sheet(clips: Sequence[np.ndarray]) -> Image.Image:
    """Return every second frame of clips, a clip in a row."""
    cell = SIDE + 2
    sheet = Image.new("RGB", (len(SHEET_FRAMES) * cell, len(clips) * cell), (110, 110, 110))
    for row, clip in enumerate(clips):
        for column, frame in enumerate(SHEET_FRAMES):
            sheet.paste(Image.fromarray(clip[frame]), (column * cell + 1, row * cell + 1))
    return sheet


def _halved(clip: np.ndarray) -> np.ndarray:
    """Average 2x2 pixels (T, H, W, 3): a shift of a pixel should not decide."""
    frames = clip.reshape(len(clip), SIDE // 2, 2, SIDE // 2, 2, 3)
    return frames.mean(axis=(2, 4), dtype=np.float32)


def load_filmer(folder: Path, steps: int = STEPS, cfg_scale: float = CFG_SCALE) -> Filmer:
    """Return a function from prompts to clips that runs the model in `folder`."""
    from dsctl_core import ModelConfig, WanPipeline

    pipe = WanPipeline.from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(path=str(folder))]
    )

    def film(prompts: list[str]) -> list[np.ndarray]:
        clips = pipe(
            prompt=prompts,
            cfg_scale=cfg_scale,
            height=SIDE,
            width=SIDE,
            num_frames=FRAMES,
            seed=list(range(len(prompts))),
            num_inference_steps=steps,
        )
        return [np.stack([np.asarray(frame) for frame in clip.frames]) for clip in clips]

    return film


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the model, diffusers layout")
    parser.add_argument("--work", type=Path, default=Path("build/embedded_model"))
    parser.add_argument("--output", type=Path, required=True, help="folder for numbers and contact sheet")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--every", type=int, default=1, help="judge one unseen action in so many")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    filmer = load_filmer(options.folder, options.steps)
    contact_sheet(filmer([clip_captions(action)[0] for action in SHEET])).save(options.output / "samples.png")
    numbers = evaluate(filmer, Drawings(fetch(options.work)), every_action(unseen=True)[:: options.every])
    (options.output / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n")
    print(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()
