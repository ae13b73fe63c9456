"""`dsctl init`: look at a folder of pictures or clips, and write a run.toml that trains on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, isqrt
from pathlib import Path
from typing import Any

from dsctl_core.commands.caption_model import suggested
from dsctl_core.commands.init_model import Choice, choose_model, gpu_memory
from dsctl_core.data import UnifiedDataset
from dsctl_core.data.buckets import ImageToBucket
from dsctl_core.data.caption_files import CaptionFiles
from dsctl_core.data.folder import list_files, repeated_folders
from dsctl_core.data.frame_rule import FrameRule
from dsctl_core.data.kinds import is_video
from dsctl_core.data.metadata import find_metadata, read_metadata
from dsctl_core.data.validated import Checks, Validation
from dsctl_core.data.validation import validate_dataset
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.resolve import ResolvedModel, resolve_model
from dsctl_core.files.atomic import prepare_folder, write_text
from dsctl_core.files.ownership import require_new
from dsctl_core.files.toml import toml_comment, toml_value
from dsctl_core.options.first_steps import InitOptions
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.readable import counted

STEPS = 1500  # about: as many as a LoRA of one subject usually needs
SAVES = 6  # checkpoints, and rounds of samples, in a run
SAMPLES = 4  # captions that are drawn
LONGEST = 300  # characters of a caption that is drawn
PICTURE, VIDEO = "image", "video"
EMBEDDED_BATCH = 4  # of a model that a CPU trains


@dataclass(frozen=True)
class InitResult:
    """What was written, and what it is about."""

    output: Path
    model: str
    why: str
    samples: int
    steps: int
    resolution: int


@dataclass(frozen=True)
class Plan:
    """What the run.toml says.

    Attributes:
        options: What `dsctl init` was asked for.
        model: The model, and why it was chosen.
        resolved: The same, with its defaults.
        key: The column of the files, "image" or "video".
        found: The dataset as it was checked.
        samples: The rows, each as often as the dataset itself repeats it.
        resolution: The side of the square whose area the buckets have.
        frames: Frames of a clip; None for pictures.
    """

    options: InitOptions
    model: Choice
    resolved: ResolvedModel
    key: str
    found: Validation
    samples: int
    resolution: int
    frames: int | None

    @property
    def embedded(self) -> bool:
        """Whether the model comes with the package, for a CPU."""
        return self.resolved.preset is not None and self.resolved.preset.model_id is None

    @property
    def batch(self) -> int:
        """Samples of a step."""
        return min(EMBEDDED_BATCH, self.samples) if self.embedded else 1

    @property
    def repeat(self) -> int:
        """How many times to go over the samples for about `STEPS` steps."""
        return max(round(STEPS * self.batch / self.samples), 1)

    @property
    def steps(self) -> int:
        """The steps of the run."""
        return ceil(self.samples * self.repeat / self.batch)

    @property
    def every(self) -> int:
        """Steps between two checkpoints."""
        return max(self.steps // SAVES, 1)


def init(options: InitOptions, progress: Progress | None = None) -> InitResult:
    """Look at the folder and write the run.toml; nothing that is there is replaced, and nothing is asked.

    Raises DsctlError for a folder that cannot be trained on as it is.
    """
    require_new(options.output, "--output")
    key = _column(options.folder)
    model = _model(options, key)
    resolved = resolve_model(model.model)
    _require_kind(options, key, resolved)
    _require_captions(options.folder, resolved)
    dataset = UnifiedDataset(options.folder, data_file_keys=(key,))
    factor = resolved.parts.division_factor
    rule = (
        None if resolved.family.time_division is None else FrameRule(1, *resolved.family.time_division, None, "shorten")
    )
    found = validate_dataset(dataset, Checks(ImageToBucket([factor], factor), rule), progress or NoProgress())
    errors = [problem for problem in found.problems if problem.level == "error"]
    if errors or not found.files:
        first = errors[0].message if errors else f"{options.folder} has no files"
        raise DsctlError(
            first, hint=f"{counted(len(errors), 'problem')}: `dsctl dataset validate {options.folder}` lists them"
        )
    frames = None if key == PICTURE else _frames(resolved, found)
    plan = Plan(options, model, resolved, key, found, len(dataset), _resolution(resolved, found), frames)
    text = "\n".join(_lines(plan)) + "\n"
    prepare_folder(options.output.parent)
    write_text(options.output, text)
    return InitResult(options.output, model.model, model.why, plan.samples, plan.steps, plan.resolution)


def _column(folder: Path) -> str:
    """Return the column of the files: that of a table, else by what most files of the folder are."""
    if not folder.is_dir():
        problem = f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist"
        raise DsctlError(problem, hint="give the folder of the pictures or clips")
    table = find_metadata(folder)
    if table is not None:
        columns = read_metadata(table).columns
        return VIDEO if VIDEO in columns and PICTURE not in columns else PICTURE
    media = list_files(folder).media
    clips = [path for path in media if is_video(path)]
    if clips and len(clips) < len(media):
        raise DsctlError(
            f"{folder} has {counted(len(media) - len(clips), 'picture')} and {counted(len(clips), 'clip')}",
            hint="put them into two folders, and train on one of them",
        )
    return VIDEO if clips else PICTURE


def _model(options: InitOptions, key: str) -> Choice:
    if options.model is not None:
        return Choice(options.model, False, "as --model says")
    choice = choose_model(gpu_memory(), videos=key == VIDEO)
    if choice is None:
        raise UsageError(f"no model is made for {options.folder}", hint="give --model NAME; `dsctl models` lists them")
    return choice


def _require_kind(options: InitOptions, key: str, resolved: ResolvedModel) -> None:
    if key == VIDEO and resolved.family.time_division is None:
        raise UsageError(
            f"{options.folder} has clips, and {resolved.family.title} makes pictures, not clips",
            hint="choose a model for videos: `dsctl models` lists them",
        )


def _require_captions(folder: Path, resolved: ResolvedModel) -> None:
    """Raise a DsctlError, with the command that writes them, for files without captions in a folder without a table."""
    if find_metadata(folder) is not None:
        return
    files = list_files(folder)
    captions = CaptionFiles(files.others)
    lacking = [path for path in files.media if captions.lacks(path)]
    if lacking and repeated_folders(folder, files.media) is None:
        raise DsctlError(
            f"{len(lacking)} of the {counted(len(files.media), 'file')} in {folder} "
            f"{'has' if len(lacking) == 1 else 'have'} no caption",
            hint=f"`{suggested(folder, resolved)}` writes them; or write a .txt beside each, then run this again",
        )


def _resolution(resolved: ResolvedModel, found: Validation) -> int:
    """Return the side of the square with the area of the buckets: the model's, or less where most files are smaller."""
    factor = resolved.parts.division_factor
    own = resolved.defaults["height"] * resolved.defaults["width"]
    areas = sorted(facts.size[0] * facts.size[1] for facts in found.files.values())
    return max(isqrt(min(own, areas[len(areas) // 2])) // factor, 1) * factor


def _frames(resolved: ResolvedModel, found: Validation) -> int:
    """Return the number of frames that the model is made for, or what the shortest clip has."""
    division = resolved.family.time_division
    assert division is not None
    fps = resolved.defaults.get("fps")
    lengths = [int(facts.end * fps) if fps and facts.end else facts.frames for facts in found.files.values()]
    return FrameRule(1, *division, None, "shorten").rounded(min(resolved.defaults.get("num_frames", 81), *lengths))


def _captions(found: Validation) -> list[str]:
    """Return captions to draw, evenly spread over the dataset."""
    texts = list(dict.fromkeys(text for sample in found.samples for text in sample.prompts[:1] if text.strip()))
    texts = [text for text in texts if len(text) <= LONGEST] or texts
    step = max(len(texts) // SAMPLES, 1)
    return texts[::step][:SAMPLES]


def _lines(plan: Plan) -> Iterator[str]:
    title = "clips" if plan.key == VIDEO else "pictures"
    yield toml_comment(f"Written by `dsctl init` for {plan.samples} {title}.")
    yield toml_comment(f"Train with `dsctl train --config {plan.options.output}`. A flag there beats a line here.")
    yield toml_comment("--dry-run says what the run takes of memory and disk, without a download.")
    yield ""
    yield toml_comment(f"The model ({plan.model.why}). `dsctl models` lists all that there are.")
    yield f"model = {toml_value(plan.model.model)}"
    yield ""
    yield toml_comment(
        f"The {title}, brought to sizes of about {plan.resolution}x{plan.resolution} pixels in their own shape."
    )
    yield from _settings(_data(plan))
    yield ""
    yield toml_comment(
        f"{counted(plan.samples, 'sample')}, {counted(plan.repeat, 'time')}, {plan.batch} at once: "
        f"{counted(plan.steps, 'step')}."
    )
    yield from _settings(_length(plan))
    yield ""
    yield toml_comment(
        "A LoRA: a higher rank holds more, and overfits sooner. Without learning_rate it is the model's own."
    )
    yield from _settings({"lora_rank": 16})
    yield toml_comment(f"learning_rate = {plan.resolved.defaults.get('learning_rate', 1e-4)}")
    yield from _settings(_memory(plan))
    yield ""
    yield toml_comment(
        f"Pictures to watch the training by, every {counted(plan.every, 'step')}, from captions of the folder."
    )
    yield from _settings({"sample_every": plan.every, "sample_prompt": _captions(plan.found)})
    yield ""
    yield toml_comment("Results: a checkpoint as often, and samples. `dsctl report FOLDER` makes a page of them.")
    yield from _settings(
        {"output_path": str(Path("runs") / plan.options.folder.resolve().name), "save_steps": plan.every}
    )


def _settings(values: dict[str, Any]) -> Sequence[str]:
    return [f"{name} = {toml_value(value)}" for name, value in values.items()]


def _data(plan: Plan) -> dict[str, Any]:
    values: dict[str, Any] = {"dataset_base_path": str(plan.options.folder)}
    if plan.key != PICTURE:
        values |= {"data_file_keys": [plan.key], "num_frames": plan.frames}
        values |= {"fps": plan.resolved.defaults["fps"]} if "fps" in plan.resolved.defaults else {}
    return {**values, "bucket_resolutions": [plan.resolution]}


def _length(plan: Plan) -> dict[str, Any]:
    return {"dataset_repeat": plan.repeat, "batch_size": plan.batch, "num_epochs": 1}


def _memory(plan: Plan) -> dict[str, Any]:
    values: dict[str, Any] = {} if plan.embedded else {"use_gradient_checkpointing": True}
    return {**values, **({"fp8_models": ["dit"]} if plan.model.fp8 else {})}
