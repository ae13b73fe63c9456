"""The models, pictures, tables and templates that `benchmarks.exact` runs on, the same ones each time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

PROMPTS = ("a red one", "a blue one", "two green ones on a table", "a red one")
SQUARE = ((64, 64),)
SHAPES = ((96, 64), (64, 96))  # of two buckets
DISTILLED = ((2, 1.0), (2, 1.0), (2, 1.0), (3, 2.5))  # steps and guidance; the last one needs the negative prompt too


@dataclass(frozen=True)
class Materials:
    """One model with what it is trained on. Every path is relative to the folder that the commands run in."""

    name: str
    folder: str
    model: str  # what --model is given
    rows: str  # folders of datasets
    shapes: str
    distilled: str
    given: str  # with the inputs of a template
    edited: str  # with reference pictures
    templates: dict[str, str]


def picture(path: Path, size: tuple[int, int], seed: int) -> str:
    """Write a picture of soft shapes under fine grain and return its name."""
    draw = Random(seed)
    shapes = Image.frombytes("RGB", (4, 4), draw.randbytes(48)).resize(size, Image.Resampling.NEAREST)
    grain = Image.frombytes("RGB", size, draw.randbytes(3 * size[0] * size[1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.blend(shapes, grain, 0.25).save(path)
    return path.name


def dataset(folder: Path, sizes: Sequence[tuple[int, int]], row: Callable[[int], dict[str, Any]]) -> str:
    """Write four pictures of `sizes` in turn, with prompts and what `row` adds."""
    lines = []
    for number, prompt in enumerate(PROMPTS):
        name = picture(folder / f"{number}.png", sizes[number % len(sizes)], number)
        lines.append(json.dumps({"image": name, "prompt": prompt, **row(number)}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder.as_posix()


def edited_dataset(folder: Path) -> str:
    """Write rows with one reference picture and rows with two, the second of another size."""

    def row(number: int) -> dict[str, Any]:
        sizes = ((64, 64), (96, 64))[: 1 + number // 2]
        names = [
            picture(folder / f"edit{number}{place}.png", size, 100 + 10 * number + place)
            for place, size in enumerate(sizes)
        ]
        return {"edit_image": names if len(names) > 1 else names[0]}

    return dataset(folder, SQUARE, row)


def distilled_row(number: int) -> dict[str, Any]:
    """Return what direct distillation asks of a row."""
    steps, guidance = DISTILLED[number]
    return {"num_inference_steps": steps, "cfg_scale": guidance, "seed": 7 + number, "negative_prompt": "grey"}


def given_row(number: int) -> dict[str, Any]:
    """Return the inputs of every template that there is."""
    return {"template_inputs": {"scale": number / 4, "gain": number / 4, "strength": 1 + number / 4}}


def write_templates(folder: Path, transformer: dict[str, Any]) -> dict[str, str]:
    """Write templates of the sizes of a transformer: one of keys and values, one of words."""
    from tests.templates import BRIGHTNESS, WORDS, write_template

    names = [f"double_{number}" for number in range(transformer["num_layers"])]
    names += [f"single_{number}" for number in range(transformer.get("num_single_layers", 0))]
    heads, width = transformer["num_attention_heads"], transformer["attention_head_dim"]
    keys = {
        "heads=2, width=16": f"heads={heads}, width={width}",
        '[f"double_{i}" for i in range(blocks)]': str(names),
    }
    words = {"width=32": f"width={transformer['joint_attention_dim']}"}
    for code, replaced in ((BRIGHTNESS, keys), (WORDS, words)):
        if not all(old in code for old in replaced):
            raise ValueError(f"the templates of the tests have changed: they have no longer all of {list(replaced)}")
    return {
        "kv_cache": write_template(folder / "kv_cache", BRIGHTNESS, **keys).as_posix(),
        "words": write_template(folder / "words", WORDS, **words).as_posix(),
    }


def write_materials(name: str, embedded: Path) -> Materials:
    """Write everything for the model called `name` below the current folder; `embedded` is that of the model tiny."""
    from tests import templates, tiny_models

    folder = Path(f"for-{name}")  # not the name alone: a folder called tiny would be taken for the model
    if name == "tiny":
        model, place = "tiny", embedded
        rows = str(embedded.parent / "datasets" / "robot")
    else:
        place = folder / "model"
        if name == "flux2-dev":
            tiny_models.write_tiny_flux2_dev(place)
        else:
            tiny_models.write_tiny_model(name, place)
        model, rows = place.as_posix(), dataset(folder / "rows", SQUARE, lambda number: {})
    transformer = json.loads((place / "transformer" / "config.json").read_text(encoding="utf-8"))
    written = write_templates(folder / "templates", transformer)
    if name == "qwen-image":  # those of the tests that have its sizes
        for kind, code in {"lora": templates.LORA, "encoder": templates.ENCODER}.items():
            written[kind] = templates.write_template(folder / "templates" / kind, code).as_posix()
    guidance = {"embedded_guidance": 2.0} if name == "flux2-dev" else {}
    picture(folder / "start.png", (80, 64), 50)
    picture(folder / "edit.png", (64, 64), 51)
    picture(folder / "edit2.png", (96, 64), 52)
    mask = Image.new("L", (80, 64))
    mask.paste(255, (20, 10, 60, 50))
    mask.save(folder / "mask.png")
    (folder / "prompts.txt").write_text("a red one\ntwo blue ones on a chair\n", encoding="utf-8")
    return Materials(
        name,
        folder.as_posix(),
        model,
        rows,
        dataset(folder / "shapes", SHAPES, lambda number: {}),
        dataset(folder / "distilled", SQUARE, lambda number: {**distilled_row(number), **guidance}),
        dataset(folder / "given", SQUARE, given_row),
        edited_dataset(folder / "edited"),
        written,
    )
