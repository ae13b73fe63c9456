"""Write a small working template, as a starting point for an own one.

The code has the names of the attention blocks of one model, and the number and size of their heads, as constants, so
that the template depends on torch only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dsctl_core.checkpoint.build import checked_build, component_class
from dsctl_core.checkpoint.weight_set import find_weights
from dsctl_core.errors import DsctlError
from dsctl_core.families import find_preset, identify_folder
from dsctl_core.family import Family
from dsctl_core.files.atomic import prepare_folder, write_text
from dsctl_core.files.ownership import require_new
from dsctl_core.media.kv_cache import block_heads
from dsctl_core.template.source import CODE

EXAMPLES: dict[str, dict[str, Any]] = {"value": {"scale": 0.8}, "image": {"image": "picture.png"}}


@dataclass(frozen=True)
class Started:
    """The result of `init`: the new folder, its files, (heads, head size) of each block, and example inputs."""

    folder: Path
    files: list[str]
    blocks: dict[str, tuple[int, int]]
    example: dict[str, Any] = field(default_factory=dict)


def write_skeleton(folder: Path, kind: str, model: str) -> Started:
    """Write the skeleton of a `kind` in EXAMPLES, for the attention blocks of the preset or folder `model`.

    Raises `DsctlError` where `folder` exists.
    """
    require_new(folder, "NAME")
    blocks = blocks_of_model(model)
    prepare_folder(folder)
    write_text(folder / CODE, skeleton(kind, model, blocks))
    return Started(folder, [CODE], blocks, EXAMPLES[kind])


def blocks_of_model(name: str) -> dict[str, tuple[int, int]]:
    """Return (heads, head size) of each attention block of a preset or a model folder, without reading weights.

    The sizes of a published preset are known, so it need not be downloaded.
    """
    folder = Path(name)
    if folder.is_dir():
        family, model_folder = identify_folder(folder), folder
    else:
        family, preset = find_preset(name)
        local_path = preset.local_path()
        if local_path is None:
            return _blocks(family, family.sizes(family.denoisers[0].name, preset.variant))
        model_folder = local_path
    component = family.component(family.denoisers[0].name)
    place = model_folder / component.folder
    model_class = component_class(component, place)
    files = find_weights(place).files if any(place.glob("*.safetensors")) else ()
    with checked_build(component, place, model_class, files) as config:
        return _blocks(family, {key: value for key, value in config.items() if not key.startswith("_")}, model_class)


def _blocks(family: Family, config: dict[str, Any], model_class: Any = None) -> dict[str, tuple[int, int]]:
    built: Any = model_class or component_class(family.component(family.denoisers[0].name))
    with torch.device("meta"):
        return block_heads(built.from_config(config), family.attention_blocks)


def skeleton(kind: str, model: str, blocks: dict[str, tuple[int, int]]) -> str:
    """Return the code of a template. `kind` is "value" or "image"; all `blocks` must have the same heads."""
    sizes = set(blocks.values())
    if len(sizes) != 1:
        raise DsctlError(f"the blocks of {model} have different heads", hint="write the template by hand")
    ((heads, width),) = sizes
    counts = {name.rpartition("_")[0]: 0 for name in blocks}
    for name in blocks:
        counts[name.rpartition("_")[0]] += 1
    names = " + ".join(f'[f"{prefix}_{{n}}" for n in range({count})]' for prefix, count in counts.items())
    parts = {"MODEL": Path(model).name, "NAMES": names, "HEADS": str(heads), "WIDTH": str(width)}
    text = {"value": _VALUE, "image": _IMAGE}[kind] + _END + (_PROCESSOR if kind == "value" else "")
    for placeholder, value in parts.items():
        text = text.replace(f"<{placeholder}>", value)
    return text


_VALUE = '''"""A template for <MODEL>: one number, `scale`, becomes tokens that every block attends to.

As an example, `scale` is the mean brightness of the image, from 0 to 1. A row of the dataset has
"template_inputs": {"scale": 0.2}, or {"image": "/path/to/image.png"} to measure the brightness.
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
        """Return sine and cosine features of `scale`, (1, 2 * WAVES). Runs once per sample, without gradients."""
        angles = math.pi / 2 * float(scale) * torch.arange(1, WAVES + 1, dtype=torch.float32)
        return {"encoded": torch.cat([angles.sin(), angles.cos()]).unsqueeze(0)}
'''

_IMAGE = '''"""A template for <MODEL>: an image becomes tokens that every block attends to.

The image is scaled down, so only its colours and their positions are used. A row of the dataset has
"template_inputs": {"image": "/path/to/image.png"}.
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
        """Return the scaled-down image in [-1, 1], (1, 3 * SIDE * SIDE). Runs once per sample, without gradients."""
        opened = image if isinstance(image, Image.Image) else Image.open(image)
        small = opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
        pixels = torch.from_numpy(numpy.array(small, dtype=numpy.float32))
        return {"encoded": (pixels / 127.5 - 1).flatten().unsqueeze(0)}
'''

_END = '''
    def forward(self, encoded, **kwargs):
        """Return {block: (key, value)}, each (1, TOKENS, HEADS, HEAD_DIM). Runs in every training step."""
        encoded = encoded.to(self.tokens.weight)
        tokens = self.tokens(self.encode(encoded)).view(1, len(BLOCKS), 2, TOKENS, HEADS, HEAD_DIM)
        return {"kv_cache": {name: (tokens[:, n, 0], tokens[:, n, 1]) for n, name in enumerate(BLOCKS)}}


TEMPLATE_MODEL = Template
TEMPLATE_MODEL_PATH = None
'''

_PROCESSOR = '''

class DataProcessor:
    def __call__(self, scale=None, image=None, **kwargs):
        """Turn the inputs in a row of the dataset into those of process_inputs."""
        if scale is None:
            with Image.open(image) as opened:
                scale = numpy.array(opened.convert("L"), dtype=numpy.float32).mean() / 255
        return {"scale": float(scale)}


TEMPLATE_DATA_PROCESSOR = DataProcessor
'''
