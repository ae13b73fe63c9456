"""Load the pictures that samples start from: the first and the last frame of a clip, the picture to paint on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.data import UnifiedDataset
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.training.callbacks.sample_references import References, load_picture

if TYPE_CHECKING:
    from dsctl_core.family import FrameInputs
    from dsctl_core.training.callbacks.sample_prompts import SamplePrompt

PLACES = {"input_image": 0, "end_image": -1}  # in the clip of a row
PAINTED = "input_image"  # the picture that a control network paints on, where its mask is white
Frames = Mapping[str, References]


def frames_of_line(row: Mapping[str, Any], names: Sequence[str], folder: Path, source: str) -> Frames:
    """Load the pictures that a line of a prompts file names, relative to `folder`.

    Raises a DsctlError that begins with `source` for a value that is no name, and for a file that cannot be read.
    """
    found = {}
    for name in names:
        value = row.get(name)
        if value is not None and (not isinstance(value, str) or not value):
            raise DsctlError(f"{source}: {name} is {value!r}", hint='write it as "a.png"')
        if value is not None:
            found[name] = References((folder / value,), (load_picture(name, folder / value, source),))
    return found


def frames_of_row(dataset: UnifiedDataset, number: int, names: Sequence[str]) -> Frames:
    """Return the frames `names` of a row: those in columns of these names if it has them, else those of its own clip.

    A row whose cell is empty has none, and neither has a picture, a clip of one frame.
    """
    found: dict[str, References] = {}
    clip = None
    for name in names:
        if name in dataset.data_file_keys:
            for path in dataset.files(number, name):
                found[name] = References((path,), (load_picture(name, path, dataset.location(number)),))
            continue
        target = dataset.data_file_keys[0]
        clip = dataset.row(number)[target] if clip is None else clip
        if isinstance(clip, list) and len(clip) > 1:
            found[name] = References(tuple(dataset.files(number, target)), (clip[PLACES[name]],))
    return found


def painted_of_row(dataset: UnifiedDataset, number: int) -> Frames:
    """Return the picture of a row, as what a control network paints on."""
    target = dataset.data_file_keys[0]
    path = dataset.files(number, target)[0]
    return {PAINTED: References((path,), (load_picture(target, path, dataset.location(number)),))}


def require_frames(prompt: SamplePrompt, taken: FrameInputs, label: str) -> None:
    """Raise a UsageError for a sample without a frame that the model, called `label`, makes clips from."""
    for name in taken.needed:
        if name not in prompt.frames:
            raise UsageError(
                f"the sample {prompt.prompt!r} has no {name}, which {label} makes clips from",
                hint=f'write lines such as {{"prompt": "a cat", "{name}": "cat.png"}} to a .jsonl file, and name it '
                "with --sample-prompts-file",
            )
