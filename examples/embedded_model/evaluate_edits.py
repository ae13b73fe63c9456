"""Measures edits that were kept out of training, and draws a grid of pictures before and after them.

A result is compared with drawings of what was asked for and of everything else that could have been:
the background and the subjects count as right when the right one is the nearest.
"""

import argparse
import json
import random
import textwrap
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage
from PIL import Image, ImageDraw, ImageFont

from cache_latents import Encoder
from drawings import Drawings, fetch
from edits import KINDS, Edit, Picture, Placed, paint_picture, random_edit
from evaluate import BATCH, CFG_SCALE, STEPS, halved
from objects import COLOURS, OBJECTS, SCENES, SHAPES
from scenes import SIZE, Subject

Method = Callable[[list[Edit]], list[Image.Image]]  # from edits to their results

OF_EACH_KIND = 16
ALIKE = 20.0  # dB at which a part counts as unchanged: its errors are then mostly the autoencoder's own
ROW = 4  # edits in a row of the grid
INK, PAPER = (30, 30, 30), (255, 255, 255)


def evaluate(method: Method, drawings: Drawings, seed: int = 11) -> dict[str, dict[str, float]]:
    """Return the shares and means of `_judge` of each kind of edit, and of all."""
    rng = random.Random(seed)
    marks: dict[str, dict[str, list[float]]] = {}
    for kind in KINDS:
        edits = [random_edit(rng, kind=kind, unseen=True) for _ in range(OF_EACH_KIND)]
        results = [result for i in range(0, OF_EACH_KIND, BATCH) for result in method(edits[i : i + BATCH])]
        for edit, result in zip(edits, results, strict=True):
            for name, value in _judge(edit, np.asarray(result, dtype=np.float32), drawings):
                for group in (kind, "all"):
                    marks.setdefault(group, {}).setdefault(name, []).append(value)
    return {
        group: {name: round(float(np.mean(values)), 4) for name, values in sorted(each.items())}
        for group, each in marks.items()
    }


def _judge(edit: Edit, result: np.ndarray, drawings: Drawings) -> list[tuple[str, float]]:
    """Return the marks of one result (SIZE, SIZE, 3).

    `background`, `new subject`, `kept subject` and `removed` are 1 where the right one is nearest; `untouched` is the
    PSNR of what should be as before, and `unchanged` 1 where that is at least `ALIKE`.
    """
    wanted = _drawn(edit.target, drawings)
    empty = _drawn(replace(edit.target, subjects=()), drawings)
    behind = np.abs(wanted - empty).max(axis=2) == 0
    distances = {
        name: np.square(result - _drawn(Picture(name, (), edit.target.seed), drawings))[behind].mean()
        for name in (*COLOURS, *SCENES)
    }
    marks = [("background", float(min(distances, key=distances.__getitem__) == edit.target.background))]
    for slot in range(len(edit.target.subjects)):
        name = "new subject" if slot == edit.slot else "kept subject"
        marks.append((name, float(_nearest(edit.target, slot, result, drawings) == edit.target.subjects[slot].subject)))
    first = edit.sources[0]
    if len(first.subjects) > len(edit.target.subjects):
        gone = next(i for i, each in enumerate(first.subjects) if each not in edit.target.subjects)
        marks.append(("removed", float(_nearest(first, gone, result, drawings) is None)))
    same = (
        ~behind if first.background != edit.target.background else np.abs(wanted - _drawn(first, drawings)).max(2) == 0
    )
    psnr = psnr_of(result, wanted, same)
    return [*marks, ("untouched", psnr), ("unchanged", float(psnr >= ALIKE))]


def psnr_of(result: np.ndarray, wanted: np.ndarray, where: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio, in dB, of the pixels `where` (SIZE, SIZE) is true."""
    error = np.square(result - wanted)[where].mean()
    return float(10 * np.log10(255.0**2 / max(error, 1e-3)))


def _nearest(picture: Picture, slot: int, result: np.ndarray, drawings: Drawings) -> Subject | None:
    """Return the subject that, drawn in this slot, comes nearest to the result; None if an empty place does."""
    every: list[Subject | None] = [None, *(Subject(word) for word in OBJECTS)]
    every += [Subject(shape, colour) for shape in SHAPES for colour in COLOURS]
    seen, errors = halved(result), []
    for subject in every:
        placed: list[Placed] = list(picture.subjects)
        placed[slot : slot + 1] = [] if subject is None else [replace(placed[slot], subject=subject)]
        other = _drawn(replace(picture, subjects=tuple(placed)), drawings)
        errors.append(np.square(seen - halved(other)).mean())
    return every[int(np.argmin(errors))]


def _drawn(picture: Picture, drawings: Drawings) -> np.ndarray:
    return np.asarray(paint_picture(picture, drawings), dtype=np.float32)


def draw_grid(method: Method, drawings: Drawings, seed: int = 5) -> Image.Image:
    """Return unseen edits of each kind, a row each: the pictures, the result, and the instruction below them."""
    rng, font = random.Random(seed), ImageFont.load_default(size=12)
    cell, gap, text_height = SIZE + 2, 14, 34
    sheet = Image.new("RGB", (ROW * (2 * cell + gap) + gap, len(KINDS) * (cell + text_height) + gap), PAPER)
    pen, top = ImageDraw.Draw(sheet), gap
    for kind in KINDS:
        left, several = gap, 2 if kind == "combine" else 1
        edits = [random_edit(rng, kind=kind, unseen=True) for _ in range(ROW // several)]
        for edit, result in zip(edits, method(edits), strict=True):
            pictures = [*(paint_picture(source, drawings) for source in edit.sources), result]
            for number, picture in enumerate(pictures):
                sheet.paste(picture, (left + number * cell, top))
            lines = textwrap.wrap(asked(edit), width=17 * len(pictures))
            pen.multiline_text((left, top + cell), "\n".join(lines), fill=INK, font=font, spacing=2)
            left += len(pictures) * cell + gap
        top += cell + text_height
    return sheet


def asked(edit: Edit) -> str:
    """Return one of the wordings of an edit, always the same."""
    return edit.wordings[zlib.crc32(edit.wordings[0].encode()) % len(edit.wordings)]


def load_editor(model: str, drawings: Drawings) -> Method:
    """Return the function that runs a preset or a model folder."""
    from dsctl_core.families.resolve import resolve_model

    pipe = resolve_model(model).load_pipeline(torch_dtype=torch.float32, device="cpu")

    def edited(edits: list[Edit]) -> list[Image.Image]:
        return pipe(
            prompt=[asked(edit) for edit in edits],
            edit_image=[[paint_picture(source, drawings) for source in edit.sources] for edit in edits],
            cfg_scale=CFG_SCALE,
            height=SIZE,
            width=SIZE,
            seed=list(range(len(edits))),
            num_inference_steps=STEPS,
        )

    return edited


def autoencoder_alone(vae: Path, drawings: Drawings) -> Method:
    """Return what the best of editors could give: the picture that is asked for, through the autoencoder in `vae`."""
    model = AutoencoderKLQwenImage.from_pretrained(vae).float()
    encode = Encoder(vae)
    shape = (1, -1, 1, 1, 1)

    @torch.no_grad()
    def reconstructed(edits: list[Edit]) -> list[Image.Image]:
        z = encode([paint_picture(edit.target, drawings) for edit in edits]).unsqueeze(2)
        x = model.decode(z * encode.std.view(shape) + encode.mean.view(shape)).sample[:, :, 0]
        pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
        return [Image.fromarray(each.numpy()) for each in pixels]

    return reconstructed


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny-edit", help="a preset, or a model folder")
    parser.add_argument("--vae", type=Path, help="measure this autoencoder alone instead")
    parser.add_argument("--work", type=Path, default=Path("build/embedded_model"))
    parser.add_argument("--output", type=Path, required=True, help="folder for numbers and grid")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    drawings = Drawings(fetch(options.work))
    method = autoencoder_alone(options.vae, drawings) if options.vae else load_editor(options.model, drawings)
    draw_grid(method, drawings).save(options.output / "edits.png", optimize=True)
    numbers = evaluate(method, drawings)
    (options.output / "edits.json").write_text(json.dumps(numbers, indent=2) + "\n")
    print(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()
