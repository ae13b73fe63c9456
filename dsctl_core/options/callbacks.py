"""Options of callbacks: sample images, validation, and trackers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator

from dsctl_core.errors import UsageError, unknown_name
from dsctl_core.options.base import Alternative, Count, Options, Seed, Side
from dsctl_core.options.data import check_whole_size
from dsctl_core.options.effects import NO_SAMPLES, NO_TRACKER, NO_VALIDATION, Idle
from dsctl_core.options.guidance import GuidanceScale
from dsctl_core.options.messages import Takes

# name -> (the module that it needs, how to install it); csv is ours
TRACKERS: dict[str, tuple[str, str] | None] = {
    "tensorboard": ("tensorboard", "pip install tensorboard"),
    "wandb": ("wandb", "pip install wandb"),
    "swanlab": ("swanlab", "pip install swanlab"),
    "trackio": ("trackio", "pip install trackio"),
    "csv": None,
    "aim": ("aim", "pip install aim"),
    "clearml": ("clearml", "pip install clearml"),
    "comet_ml": ("comet_ml", "pip install comet-ml"),
    "dvclive": ("dvclive", "pip install dvclive"),
    "mlflow": ("mlflow", "pip install mlflow"),
}


@dataclass(frozen=True)
class Prompt:
    """A prompt to draw a sample of."""

    form: ClassVar[str] = "TEXT"

    text: str

    @classmethod
    def parse(cls, text: Any) -> Prompt:
        """Take any text that says something."""
        if isinstance(text, Prompt):
            return text
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"the prompt {text!r} says nothing")
        return cls(text)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Tracker:
    """A program that draws the curves of runs."""

    form: ClassVar[str] = "NAME"

    name: str

    @classmethod
    def parse(cls, text: Any) -> Tracker:
        """Look up a name."""
        if isinstance(text, Tracker):
            return text
        if not isinstance(text, str) or text not in TRACKERS:
            raise unknown_name("tracker", str(text), list(TRACKERS))
        return cls(text)

    def __str__(self) -> str:
        return self.name


def _alone_or_several(value: Any) -> Any:
    """Let run.toml write one as a text, and several as a list."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _names(value: Any) -> Any:
    """Take the flag repeated, a list, and names separated by commas."""
    texts = _alone_or_several(value)
    if not isinstance(texts, tuple):
        return value
    parts = (part for text in texts for part in (text.split(",") if isinstance(text, str) else [text]))
    return tuple(part.strip() if isinstance(part, str) else part for part in parts)


OnePrompt = Annotated[Prompt, BeforeValidator(Prompt.parse), PlainSerializer(str)]
OneTracker = Annotated[Tracker, BeforeValidator(Tracker.parse), PlainSerializer(str)]
Prompts = Annotated[tuple[OnePrompt, ...], BeforeValidator(_alone_or_several), Takes("a text")]
Trackers = Annotated[tuple[OneTracker, ...], BeforeValidator(_names), Takes(f"names of {', '.join(TRACKERS)}")]


class CallbackOptions(Options):
    """Options of the callbacks, which show a run while it is in progress."""

    panel: ClassVar[str] = "Watching the run"
    exclusive: ClassVar[tuple[Alternative, ...]] = (("sample_prompt", "sample_prompts_file"),)
    idle: ClassVar[tuple[Idle, ...]] = (NO_SAMPLES, NO_VALIDATION, NO_TRACKER)

    track: Trackers = Field(
        (), description=f"Draw the curves with this, too: {', '.join(TRACKERS)}. Can be given several times."
    )
    track_project: Annotated[str, Field(min_length=1)] = Field(
        "dsctl", description="Project that a tracker files the run under; the run has the name of --output-path."
    )
    sample_every: Count | None = Field(
        None, description="Draw pictures or clips before the first step, every this many steps, and after the last."
    )
    sample_prompt: Prompts = Field(
        (),
        description="What to draw. Can be given several times. Left out: captions of the dataset, four at most.",
    )
    sample_prompts_file: Path | None = Field(
        None, description="Prompts to draw: a text file with one a line, or a .jsonl with settings for each."
    )
    sample_negative_prompt: str = Field("", description="What the samples are not to show.")
    sample_height: Side | None = Field(
        None,
        description="Height of the samples, in pixels. Left out, with --sample-width: as trained, else the model's.",
    )
    sample_width: Side | None = Field(None, description="Width of the samples, in pixels.")
    sample_steps: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="Denoising steps of a sample. Left out: the model's own number."
    )
    sample_cfg_scale: GuidanceScale | None = Field(
        None,
        description="How strongly samples follow the prompt; 1 is no guidance. Of two denoisers each can have its own: "
        "dit=4,dit_2=3. Left out: the model's own.",
    )
    sample_seed: Seed = Field(0, description="Seed of the first prompt; each further one has the next seed.")
    validation_split: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Share of the rows never to train on, such as 0.1, whose loss is measured now and then."
    )
    validation_every: Count | None = Field(
        None,
        description="Measure that loss every this many steps. Left out: as --save-steps, else ten times in the run.",
    )

    @field_validator("track")
    @classmethod
    def _each_tracker_once(cls, track: tuple[Tracker, ...]) -> tuple[Tracker, ...]:
        for tracker in track:
            if track.count(tracker) > 1:
                raise UsageError(f"--track names {tracker} twice", hint="name each once")
        return track

    @property
    def tracks_projects(self) -> bool:
        """Whether one of the trackers files runs under projects."""
        return any(TRACKERS[tracker.name] for tracker in self.track)

    def check(self) -> None:
        """Raise a UsageError for half a size."""
        check_whole_size(self.sample_height, self.sample_width, "--sample-height", "--sample-width")
