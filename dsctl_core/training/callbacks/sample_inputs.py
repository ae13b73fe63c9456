"""Read the clips and pictures that samples follow, from lines of a prompts file or rows of the dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.data import UnifiedDataset
from dsctl_core.data.defaults import default_video_operator
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.family import Family
from dsctl_core.training.callbacks.sample_references import in_sample, load_picture

if TYPE_CHECKING:
    from dsctl_core.training.callbacks.sample_prompts import SamplePrompt

Files = Mapping[str, tuple[Path, ...]]  # of a sample, by the name of the input


def own_inputs(family: Family) -> tuple[str, ...]:
    """Return the names of the inputs that a sample of the family follows: clips, and pictures of their own size."""
    return (*family.along_inputs, *family.whole_inputs) if family.time_division is not None else ()


def files_of_line(row: Mapping[str, Any], names: Sequence[str], folder: Path, source: str) -> Files:
    """Return the files that a line names, relative to `folder`; raise DsctlError, with `source`, for anything else."""
    found = {}
    for name in names:
        value = row.get(name)
        paths = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
            raise DsctlError(f"{source}: {name} is {value!r}", hint='write it as "a.mp4", or as a list of file names')
        if paths:
            found[name] = tuple(folder / path for path in paths)
    return found


def files_of_row(dataset: UnifiedDataset, number: int, names: Sequence[str]) -> Files:
    """Return the files that row `number` of the dataset has in the columns `names`, as far as it loads them."""
    read = [name for name in names if name in dataset.data_file_keys]
    return {name: tuple(paths) for name in read if (paths := dataset.files(number, name))}


def loaded_inputs(prompt: SamplePrompt, family: Family, factor: int, fps: float | None) -> dict[str, Any]:
    """Return what the files of `prompt` hold, as arguments of the pipeline: clips of its size and frames, and pictures.

    Raises DsctlError for a file that cannot be used, and for several in place of one.
    """
    found: dict[str, Any] = {}
    for name, files in prompt.followed.items():
        if name in family.whole_inputs:
            found[name] = [load_picture(name, path, prompt.source) for path in files]
            continue
        if len(files) > 1:
            raise UsageError(f"{name} of the sample {prompt.prompt!r} is {len(files)} files", hint="give one")
        assert family.time_division is not None
        load = default_video_operator(
            height=prompt.height,
            width=prompt.width,
            height_division_factor=factor,
            width_division_factor=factor,
            num_frames=prompt.num_frames,
            time_division_factor=family.time_division[0],
            time_division_remainder=family.time_division[1],
            fps=fps,
            allow_outside=True,
        )
        try:
            found[name] = load(str(files[0]))
        except DsctlError as error:
            raise in_sample(error, name, prompt.source) from error
    return found
