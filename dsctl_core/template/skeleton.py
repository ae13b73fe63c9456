"""Write a template that works, small enough to read in a minute, to start one's own from.

It is written for one model: the names of its blocks, and how many heads of what size they have, stand as constants
in the code, so that the template needs nothing but torch.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dsctl_core.errors import DsctlError
from dsctl_core.families import find_preset, identify_folder
from dsctl_core.family import Family
from dsctl_core.files.atomic import prepare_folder, write_text
from dsctl_core.media.kv_cache import block_heads
from dsctl_core.template.source import CODE

EXAMPLES: dict[str, dict[str, Any]] = {"value": {"scale": 0.8}, "image": {"image": "picture.png"}}


@dataclass(frozen=True)
class Started:
    """What was written, and what to do with it next."""

    folder: Path
    files: list[str]
    blocks: dict[str, tuple[int, int]]
    example: dict[str, Any] = field(default_factory=dict)


def write_skeleton(folder: Path, kind: str, model: str) -> Started:
    """Write the skeleton of a `kind` in EXAMPLES, for the blocks of the preset or folder `model`, into a new folder."""
    if folder.exists():
        raise DsctlError(f"{folder} is there already", hint="give another name, or remove it")
    blocks = blocks_of_model(model)
    prepare_folder(folder)
    write_text(folder / CODE, skeleton(kind, model, blocks))
    return Started(folder, [CODE], blocks, EXAMPLES[kind])


def blocks_of_model(name: str) -> dict[str, tuple[int, int]]:
    """Return (heads, numbers a head) of each block of a preset or a model folder; no weights are read.

    Of a published preset they are known, so it need not be there.
    """
    folder = Path(name)
    if folder.is_dir():
        family, own = identify_folder(folder), folder
    else:
        family, preset = find_preset(name)
        found = preset.local_path()
        if found is None:
            return _blocks(family, family.sizes(family.denoisers[0].name, preset.variant))
        own = found
    component = family.component(family.denoisers[0].name)
    file = own / component.folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DsctlError(f"{file} cannot be read: {error}", hint="give --model a whole model folder") from error
    return _blocks(family, {key: value for key, value in config.items() if not key.startswith("_")})


def _blocks(family: Family, config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    component = family.component(family.denoisers[0].name)
    kind: Any = getattr(importlib.import_module(component.library), component.class_name)
    with torch.device("meta"):
        return block_heads(kind.from_config(config), family.attention_blocks)


def skeleton(kind: str, model: str, blocks: dict[str, tuple[int, int]]) -> str:
    """Return the code of a template of this kind for these blocks, which all have the same heads."""
    sizes = set(blocks.values())
    if len(sizes) != 1:
        raise DsctlError(f"the blocks of {model} differ in their heads", hint="write the template by hand")
    ((heads, width),) = sizes
    counts = {name.rpartition("_")[0]: 0 for name in blocks}
    for name in blocks:
        counts[name.rpartition("_")[0]] += 1
    names = " + ".join(f'[f"{start}_{{n}}" for n in range({count})]' for start, count in counts.items())
    parts = {"MODEL": Path(model).name, "NAMES": names, "HEADS": str(heads), "WIDTH": str(width)}
    text = {"value": _VALUE, "image": _IMAGE}[kind] + _END + (_PROCESSOR if kind == "value" else "")
    for word, value in parts.items():
        text = text.replace(f"<{word}>", value)
    return text


_VALUE = '''"""A template for <MODEL>: one number, `scale`, becomes tokens that every block attends to.

Brightness is the example: `scale` is the mean brightness of a picture, from 0 to 1. A row of the dataset has
"template_inputs": {"scale": 0.2}, or {"image": "/path/of/the/picture.png"} to have it measured.
"""

import math

import numpy
import torch
from PIL import Image

BLOCKS = <NAMES>
HEADS, HEAD_DIM = <HEADS>, <WIDTH>  # of the model that the template is for
TOKENS, WAVES, HIDDEN = 4, 8, 64  # of the template


class Template(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = torch.nn.Sequential(torch.nn.Linear(2 * WAVES, HIDDEN), torch.nn.SiLU())
        self.tokens = torch.nn.Linear(HIDDEN, len(BLOCKS) * 2 * TOKENS * HEADS * HEAD_DIM)

    @torch.no_grad()
    def process_inputs(self, scale, **kwargs):
        """Runs once for a sample, without gradients: the waves of `scale`, (1, 2 * WAVES)."""
        angles = math.pi / 2 * float(scale) * torch.arange(1, WAVES + 1, dtype=torch.float32)
        return {"encoded": torch.cat([angles.sin(), angles.cos()]).unsqueeze(0)}
'''

_IMAGE = '''"""A template for <MODEL>: a picture becomes tokens that every block attends to.

The picture is made small, so what comes through is its colours and where they are. A row of the dataset has
"template_inputs": {"image": "/path/of/the/picture.png"}.
"""

import numpy
import torch
from PIL import Image

BLOCKS = <NAMES>
HEADS, HEAD_DIM = <HEADS>, <WIDTH>  # of the model that the template is for
TOKENS, SIDE, HIDDEN = 16, 16, 128  # of the template


class Template(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = torch.nn.Sequential(torch.nn.Linear(3 * SIDE * SIDE, HIDDEN), torch.nn.SiLU())
        self.tokens = torch.nn.Linear(HIDDEN, len(BLOCKS) * 2 * TOKENS * HEADS * HEAD_DIM)

    @torch.no_grad()
    def process_inputs(self, image, **kwargs):
        """Runs once for a sample, without gradients: the small picture from -1 to 1, (1, 3 * SIDE * SIDE)."""
        opened = image if isinstance(image, Image.Image) else Image.open(image)
        small = opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
        pixels = torch.from_numpy(numpy.array(small, dtype=numpy.float32))
        return {"encoded": (pixels / 127.5 - 1).flatten().unsqueeze(0)}
'''

_END = '''
    def forward(self, encoded, **kwargs):
        """Runs at every step of a training: {block: (key, value)}, each (1, TOKENS, HEADS, HEAD_DIM)."""
        encoded = encoded.to(self.tokens.weight)
        tokens = self.tokens(self.encode(encoded)).view(1, len(BLOCKS), 2, TOKENS, HEADS, HEAD_DIM)
        return {"kv_cache": {name: (tokens[:, n, 0], tokens[:, n, 1]) for n, name in enumerate(BLOCKS)}}


TEMPLATE_MODEL = Template
TEMPLATE_MODEL_PATH = None
'''

_PROCESSOR = '''

class DataProcessor:
    def __call__(self, scale=None, image=None, **kwargs):
        """Turns what a row has into what process_inputs takes."""
        if scale is None:
            with Image.open(image) as opened:
                scale = numpy.array(opened.convert("L"), dtype=numpy.float32).mean() / 255
        return {"scale": float(scale)}


TEMPLATE_DATA_PROCESSOR = DataProcessor
'''
