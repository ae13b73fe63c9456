"""Collect the sample prompts of a run from the options, a file or the dataset, with their settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.data import UnifiedDataset
from dsctl_core.data.images import LoadImage
from dsctl_core.data.prompt_file import prompt_lines, text_lines
from dsctl_core.data.sizes import ImageCropAndResize, clip_size, require_same_ratio
from dsctl_core.errors import DsctlError, UsageError, unknown_name
from dsctl_core.files.json import parse_json
from dsctl_core.training.callbacks.sample_frames import Frames, frames_of_line, frames_of_row, painted_of_row
from dsctl_core.training.callbacks.sample_inputs import Files, files_of_line, files_of_row
from dsctl_core.training.callbacks.sample_references import (
    REFERENCES,
    References,
    load_picture,
    load_references,
    read_references,
)
from dsctl_core.training.callbacks.validation import is_regularization
from dsctl_core.units import is_guided

if TYPE_CHECKING:
    from PIL.Image import Image

    from dsctl_core.family import FrameInputs
    from dsctl_core.options.callbacks import CallbackOptions

EMPTY: Mapping[str, str] = {}
CAPTIONS = 4  # number of captions of the dataset to draw when there is no prompt
KINDS: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "negative_prompt": (str,),
    "seed": (int,),
    "height": (int,),
    "width": (int,),
    "num_inference_steps": (int,),
    "cfg_scale": (int, float),
}
FORMS = "a .txt file with one prompt per line, or a .jsonl file of objects with a prompt and its settings"
LEAST = {"seed": 0, "height": 1, "width": 1, "num_inference_steps": 1, "cfg_scale": 0}


# From the reference images of a sample, and the pixels that it is to have, to its (width, height) in pixels.
EditedSize = Callable[[Sequence["Image"], int], tuple[int, int]]


@dataclass(frozen=True)
class SamplePrompt:
    """One picture or clip, drawn with the same seed and settings every time. Height and width in pixels."""

    prompt: str
    negative_prompt: str
    seed: int
    height: int
    width: int
    num_inference_steps: int
    cfg_scale: float | Sequence[float]
    num_frames: int | None = None  # of a clip; None for a model of pictures
    columns: Mapping[str, Any] = field(default_factory=dict)  # inputs of the side networks, pictures by their files
    folder: Path = Path()  # to which those files are relative
    edit_image: References | None = None
    pictures: Mapping[str, Any] = field(default_factory=dict)  # the pictures of the files in `columns`, in this size
    frames: Frames = field(default_factory=dict)  # the first and the last frame of a clip, where they are given
    followed: Files = field(default_factory=dict)  # files of the clips and pictures that it follows, by the input
    loaded: Mapping[str, Any] = field(default_factory=dict)  # what the files in `followed` hold
    source: str = "a sample"  # the line or the row that it comes from, for messages

    @property
    def side_inputs(self) -> dict[str, Any]:
        """The inputs of the side networks of the pipeline."""
        return {**self.columns, **self.pictures}

    def inputs(self) -> dict[str, Any]:
        """Return the keyword arguments of the pipeline call."""
        references = {} if self.edit_image is None else {REFERENCES: list(self.edit_image.images)}
        frames = {name: each.images[0] for name, each in self.frames.items()}
        return {**self._settings(), **references, **frames, **self.loaded}

    def with_pictures(self, names: Sequence[str], factor: int, masks: Mapping[str, str] = EMPTY) -> SamplePrompt:
        """Return it with the pictures in the columns `names` loaded and cut to its size, a multiple of `factor`.

        Raises DsctlError for a file that is no picture, and for one of `masks` that is not as large as the picture of
        which it is a mask, in a column or a frame.
        """
        fit = ImageCropAndResize(self.height, self.width, None, factor, factor)
        found = {}
        for name in names:
            value = self.columns.get(name)
            if value is not None and (not isinstance(value, str) or not value):
                raise UsageError(
                    f"{self.source}: {name} is {value!r}, not a file",
                    hint="write the name of a file, such as edges.png",
                )
            if value is not None:
                found[name] = load_picture(name, self.folder / value, self.source)
        whole = {**{name: frame.images[0] for name, frame in self.frames.items()}, **found}
        for mask, of in masks.items():
            if mask in whole and of in whole and whole[mask].size != whole[of].size:
                sizes = ["x".join(map(str, whole[name].size)) for name in (mask, of)]
                raise DsctlError(
                    f"the sample {self.prompt!r} has a {mask} of {sizes[0]}, but its {of} is {sizes[1]}",
                    hint="give a mask as large as the picture",
                )
        return replace(self, pictures={name: fit(picture) for name, picture in found.items()})

    def with_fitting_frames(self, factor: int) -> SamplePrompt:
        """Return it with its frames cut to its size, a multiple of `factor`."""
        fit = ImageCropAndResize(self.height, self.width, None, factor, factor)
        fitting = {name: replace(each, images=(fit(each.images[0]),)) for name, each in self.frames.items()}
        return replace(self, frames=fitting)

    def about(self) -> dict[str, Any]:
        """Return all settings, as written into the metadata of the picture."""
        references = {} if self.edit_image is None else {REFERENCES: list(map(str, self.edit_image.files))}
        frames = {name: str(each.files[0]) for name, each in self.frames.items()}
        followed = {name: list(map(str, files)) for name, files in self.followed.items()}
        return {**self._settings(), **references, **frames, **followed, **self.columns}

    def _settings(self) -> dict[str, Any]:
        frames = {} if self.num_frames is None else {"num_frames": self.num_frames}
        return {**{name: getattr(self, name) for name in KINDS}, **frames}


def sample_prompts(
    options: CallbackOptions,
    defaults: Mapping[str, Any],
    trained_size: tuple[int, int] | None,
    captions: Sequence[Mapping[str, Any]],
    columns: Sequence[str] = (),
    num_frames: int | None = None,
    edited_size: EditedSize | None = None,
    pictures: Sequence[str] = (),
    frames: FrameInputs | None = None,
    followed: Sequence[str] = (),
    factor: int = 16,
    denoisers: Sequence[str] = ("dit",),
) -> list[SamplePrompt]:
    """Return the samples that `options` ask for.

    At least one sample must have a value in the columns of side networks, else a UsageError is raised.

    Args:
        options: The options of the callbacks.
        defaults: The settings without a value, except for the size.
        trained_size: (height, width) in pixels of the training images, if all have one.
        captions: Rows of the dataset, which are drawn when there is no prompt.
        columns: The columns of the side networks that are trained.
        num_frames: The number of frames of a clip; None for a model of pictures.
        edited_size: The size of a sample with reference images; None for a model that takes none.
        pictures: Those of `columns` that name pictures.
        frames: The frames that a model of clips is given; None for a model that is given none.
        followed: The inputs of the model that name clips and pictures to follow.
        factor: The sides of a clip are multiples of this, in pixels.
        denoisers: The names of the denoisers, each of which can have a guidance scale of its own.
    """
    given = () if frames is None else (*frames.needed, *frames.optional)
    rows = _rows(options, captions, columns if edited_size is None else [*columns, REFERENCES], given, followed)
    if columns and not any(row.get("columns") for row in rows):
        value = '"edges.png"' if columns[0] in pictures else "{...}"
        raise UsageError(
            f"no sample has {columns[0]}, so none would show what is trained",
            hint=f'write lines such as {{"prompt": "a cat", "{columns[0]}": {value}}} to a .jsonl file, and name it '
            "with --sample-prompts-file",
        )
    height, width, own = options.sample_height, options.sample_width, defaults["cfg_scale"]
    if height is None or width is None:
        height, width = trained_size or (defaults["height"], defaults["width"])
    shared = {
        "negative_prompt": options.sample_negative_prompt,
        "height": height,
        "width": width,
        "num_inference_steps": options.sample_steps or defaults["num_inference_steps"],
        "cfg_scale": own if options.sample_cfg_scale is None else options.sample_cfg_scale.of(denoisers, own),
        "num_frames": num_frames,
    }
    if edited_size is not None and options.sample_height is None and trained_size is None:
        rows = [_as_edited(row, edited_size, height * width) for row in rows]
    if frames is not None and options.sample_height is None and trained_size is None:
        rows = [_as_first_frame(row, height * width, factor) for row in rows]
    numbered = enumerate(rows)
    prompts = [SamplePrompt(**{**shared, "seed": options.sample_seed + number, **row}) for number, row in numbered]
    for prompt in prompts:
        if prompt.negative_prompt and not is_guided(prompt.cfg_scale):
            raise UsageError(
                "a sample's negative prompt has no effect at a cfg_scale of 1, which is no guidance",
                hint="give a --sample-cfg-scale above 1, or leave out the negative prompt",
            )
    return prompts


def to_decompose(prompt: SamplePrompt) -> References:
    """Return the one picture that a sample of a model that decomposes shows it, with its transparency.

    Raises UsageError for a sample without one, with several, or with one that its size would distort.
    """
    files = () if prompt.edit_image is None else prompt.edit_image.files
    if len(files) != 1:
        raise UsageError(
            f"the sample {prompt.prompt!r} has {len(files) or 'no'} pictures to decompose",
            hint=f'write lines such as {{"prompt": "a cat", "{REFERENCES}": "cat.png"}} to a .jsonl file, and name it '
            "with --sample-prompts-file",
        )
    shown = LoadImage(convert_RGBA=True)(files[0])
    require_same_ratio(shown.size, (prompt.width, prompt.height))
    return References(files, (shown,))


def _as_edited(row: Mapping[str, Any], edited_size: EditedSize, pixels: int) -> Mapping[str, Any]:
    """Return `row` with the size of its reference images, if it has some and no size of its own."""
    if row.get(REFERENCES) is None or "height" in row:
        return row
    width, height = edited_size(row[REFERENCES].images, pixels)
    return {**row, "height": height, "width": width}


def _as_first_frame(row: Mapping[str, Any], pixels: int, factor: int) -> Mapping[str, Any]:
    """Return `row` with the shape of its first frame, if it has one and no size of its own."""
    frames = list(row.get("frames", {}).values())
    if not frames or "height" in row:
        return row
    width, height = clip_size(frames[0].images[0].size, pixels, factor)
    return {**row, "height": height, "width": width}


def captions_of(
    dataset: Any,
    columns: Sequence[str] = (),
    frames: Sequence[str] = (),
    followed: Sequence[str] = (),
    mask: str | None = None,
) -> list[dict[str, Any]]:
    """Return a few rows with different captions, spread over the dataset, in order, with their `columns` and `frames`.

    Reference images are loaded, and the files in the columns `followed` found, if the dataset loads them. A row with a
    file in the column `mask` has its own picture, to paint on.
    """
    if not isinstance(dataset, UnifiedDataset):
        return []
    found: dict[str, int] = {}
    for number in dataset.rows_in_use:
        if is_regularization(dataset, number):
            continue
        for text in dataset.prompts(number):
            if text.strip():
                found.setdefault(text, number)
    chosen = list(found.items())[:: max(-(-len(found) // CAPTIONS), 1)]
    return [_caption_row(dataset, text, number, columns, frames, followed, mask) for text, number in chosen]


def _caption_row(
    dataset: UnifiedDataset,
    text: str,
    number: int,
    columns: Sequence[str],
    frames: Sequence[str],
    followed: Sequence[str],
    mask: str | None,
) -> dict[str, Any]:
    folder = dataset.parts[dataset.table_of(number)].base_path
    row: dict[str, Any] = {"prompt": text, "columns": _given(dataset.metadata.rows[number], columns), "folder": folder}
    painted = painted_of_row(dataset, number) if mask in row["columns"] else {}
    row["frames"] = {**frames_of_row(dataset, number, frames), **painted}
    row["followed"], row["source"] = files_of_row(dataset, number, followed), dataset.location(number)
    if REFERENCES in dataset.data_file_keys:
        row[REFERENCES] = load_references(dataset.files(number, REFERENCES), dataset.location(number))
    return row


def _given(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    return {name: row[name] for name in columns if row.get(name) is not None}


def _rows(
    options: CallbackOptions,
    captions: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    frames: Sequence[str] = (),
    followed: Sequence[str] = (),
) -> Sequence[Mapping[str, Any]]:
    file = options.sample_prompts_file
    if file is not None and file.suffix.lower() == ".jsonl":
        return _from_jsonl(file, columns, frames, followed)
    if file is not None:
        return [{"prompt": prompt} for prompt in prompt_lines(file, "--sample-prompts-file", FORMS)]
    given = [str(prompt) for prompt in options.sample_prompt]
    if not given and not captions:
        raise UsageError(
            "--sample-every is given without a prompt, and the dataset has no captions",
            hint='give --sample-prompt "..." or --sample-prompts-file FILE',
        )
    return [{"prompt": prompt} for prompt in given] or captions


def _from_jsonl(
    file: Path, columns: Sequence[str], frames: Sequence[str], followed: Sequence[str]
) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text_lines(file, "--sample-prompts-file"), 1):
        if line.strip():
            place = f"--sample-prompts-file {file} line {number}"
            rows.append(_checked(place, line, columns, frames, followed, file.parent))
    if not rows:
        raise DsctlError(
            f"--sample-prompts-file {file} has no prompt in it",
            hint='write lines such as {"prompt": "a cat", "seed": 1}',
        )
    return rows


def _checked(
    place: str, line: str, columns: Sequence[str], frames: Sequence[str], followed: Sequence[str], folder: Path
) -> dict[str, Any]:
    row = parse_json(line, place, hint='write {"prompt": "a cat", "seed": 1}')
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise DsctlError(f"{place} has no prompt", hint='write {"prompt": "a cat", "seed": 1}')
    known = (*columns, *frames, *followed)
    own = {name: value for name, value in row.items() if name not in known}
    for name, value in own.items():
        if name not in KINDS:
            raise unknown_name(f"key in {place}", name, [*KINDS, *known])
        if not isinstance(value, KINDS[name]) or isinstance(value, bool) or _too_small(name, value):
            kind = "text" if KINDS[name] == (str,) else f"a number of at least {LEAST[name]}"
            raise DsctlError(f"{place}: {name} is {value!r}", hint=f"{name} takes {kind}")
    if ("height" in row) != ("width" in row):
        raise DsctlError(f"{place} has a height or a width alone", hint="give both, or neither")
    found = {**own, "source": place, "columns": _given(row, [name for name in columns if name != REFERENCES])}
    found["followed"] = files_of_line(row, followed, folder, place)
    if REFERENCES in columns:
        found[REFERENCES] = read_references(row.get(REFERENCES), folder, place)
    return {**found, "frames": frames_of_line(row, frames, folder, place), "folder": folder}


def _too_small(name: str, value: Any) -> bool:
    return name in LEAST and value < LEAST[name]
