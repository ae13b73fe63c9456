"""Options of `dsctl dataset`."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from dsctl_core.errors import UsageError
from dsctl_core.options.base import Alternative, Argument, ComposedOptions, Count, Device, Options, Seed, Text
from dsctl_core.options.data import ReadingOptions
from dsctl_core.options.effects import ALWAYS_LIKELIEST, NO_ANNOTATOR, NO_DETECTOR, NO_REMOTE, Idle
from dsctl_core.options.mps import refuse_on_mps
from dsctl_core.remote.archives import is_copied


class DatasetValidateOptions(ComposedOptions):
    """Options of `dsctl dataset validate`."""

    panel: ClassVar[str] = "Validation"

    remote: ClassVar[frozenset[str]] = frozenset({"path", "metadata"})
    idle: ClassVar[tuple[Idle, ...]] = (NO_REMOTE,)

    reading: ReadingOptions

    path: Annotated[Path, Argument()] = Field(
        description="Dataset folder, its table, or the address of one; a TOML file with a [[dataset]] for each of "
        "several; or a cache."
    )
    metadata: Path | None = Field(
        None,
        description="Table of the samples. Left out: metadata.* in the folder, or captions beside files.",
    )
    model: Text | None = Field(
        None,
        description="Preset or model folder to check for: sizes, the longest prompt, and how large a cache would be.",
    )
    strict: bool = Field(False, description="Let warnings count as errors.")
    report: Path | None = Field(None, description="Write a page with the problems, charts and pictures: FILE.html.")
    recheck: bool = Field(
        False, description="Decode every file, also those that were decoded before and have not changed."
    )
    workers: Annotated[int, Field(ge=1, le=256)] | None = Field(
        None, description="Processes that decode. Left out: one for each core."
    )

    @property
    def all_local(self) -> bool:
        """Whether nothing is copied of the folder or its table; what a TOML file names is not known yet."""
        return self.path.suffix.lower() != ".toml" and not any(map(is_copied, filter(None, (self.path, self.metadata))))


DEPTH, POSE = "depth", "pose"  # the kinds of control pictures that a model draws
EXAMPLES = {DEPTH: "depth-anything/Depth-Anything-V2-Small-hf", POSE: "usyd-community/vitpose-base-simple"}


class DatasetAnnotateOptions(Options):
    """Options of `dsctl dataset annotate`."""

    panel: ClassVar[str] = "Control pictures"
    idle: ClassVar[tuple[Idle, ...]] = (NO_ANNOTATOR, NO_DETECTOR)

    path: Annotated[Path, Argument()] = Field(description="Dataset folder, or its table.")
    kind: Literal["canny", "soft-edge", "gray", "tile", "blur", "depth", "pose"] = Field(
        description="What to draw: edges, soft edges, brightness, an eighth of the details, a blur, depth, or the "
        "skeletons of people in the colours of OpenPose."
    )
    annotator: Text | None = Field(
        None,
        description="Model of transformers that estimates depth, or for poses a ViTPose: a folder, or OWNER/NAME on a "
        "hub.",
    )
    detector: Text | None = Field(
        None,
        description="Object detection model of transformers that finds people for --kind pose. Left out: a picture is "
        "taken as the box of one person.",
    )
    metadata: Path | None = Field(
        None, description="Table of the samples. Left out: metadata.* in the folder, or captions beside files."
    )

    def check(self) -> None:
        """Raise a UsageError for depth and poses without a model."""
        if self.kind in EXAMPLES and self.annotator is None:
            raise UsageError(
                f"--kind {self.kind} is given without --annotator",
                hint=f"name a model, such as --annotator {EXAMPLES[self.kind]}",
            )


TABLE_SUFFIXES = (".csv", ".jsonl")


class DatasetCaptionOptions(Options):
    """Options of `dsctl dataset caption`."""

    panel: ClassVar[str] = "Captions"
    exclusive: ClassVar[tuple[Alternative, ...]] = (("model", "captioner"),)
    idle: ClassVar[tuple[Idle, ...]] = (ALWAYS_LIKELIEST,)

    path: Annotated[Path, Argument()] = Field(description="Folder of pictures or clips, or the table of a dataset.")
    model: Text | None = Field(
        None,
        description="Preset or model folder to train, if its text encoder can describe pictures: nothing more is "
        "downloaded.",
    )
    captioner: Text | None = Field(
        None, description="Vision-language model of transformers instead: a folder, or OWNER/NAME on a hub."
    )
    prompt: Text | None = Field(
        None, description="What to ask about each picture or clip. Left out: a description in one paragraph."
    )
    trigger_word: Text | None = Field(
        None, description="Word to put before each caption that does not have it, with a comma."
    )
    max_tokens: Annotated[int, Field(ge=1, le=8192)] = Field(
        256, description="Longest caption, in tokens; a longer one ends with its last whole sentence."
    )
    all: bool = Field(False, description="Describe also what has a caption, and write all captions to a new table.")
    output: Path | None = Field(
        None,
        description="New table for all rows, .csv or .jsonl. Left out: a .txt beside each file without a caption; for "
        "the rows of a table, or with --all, metadata_captioned.csv in the folder.",
    )
    metadata: Path | None = Field(None, description="Table of the samples. Left out: metadata.* in the folder.")
    file_column: Text | None = Field(
        None, description="Column of the table with the files to describe. Left out: image, else video."
    )
    num_frames: Annotated[int, Field(ge=1, le=256)] = Field(
        8, description="Frames of a clip that are shown, spread evenly over it."
    )
    max_pixels: Count = Field(1024 * 1024, description="Larger pictures and frames are scaled down to this.")
    temperature: Annotated[float, Field(ge=0, le=5)] = Field(
        0.0, description="How freely words are drawn. 0 takes the likeliest, so that a caption is always the same."
    )
    seed: Seed = Field(0, description="Seed of the words that are drawn.")
    batch_size: Annotated[int, Field(ge=1, le=1024)] = Field(1, description="Files that are described at once.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="Precision of the model. Left out: bfloat16 on a GPU that has it, else float32."
    )
    device: Device | None = Field(None, description="cpu, cuda, cuda:N or mps. Left out: cuda if there is one.")

    @field_validator("output")
    @classmethod
    def _some_table(cls, output: Path | None) -> Path | None:
        if output is not None and output.suffix.lower() not in TABLE_SUFFIXES:
            raise UsageError(
                f"--output is {str(output)!r}, which is no table", hint="give it a name that ends in .csv or .jsonl"
            )
        return output

    @field_validator("prompt", "trigger_word")
    @classmethod
    def _some_words(cls, words: str | None) -> str | None:
        if words is not None and not words.strip():
            raise UsageError(f"{words!r} is given as words, and says nothing", hint="write some, or leave it out")
        return words

    def check(self) -> None:
        """Raise a UsageError if no model is named, and for a precision that the device does not have."""
        refuse_on_mps(self.device, {}, precisions={"--dtype": self.dtype})
        if self.model is None and self.captioner is None:
            raise UsageError(
                "nothing that describes pictures is named",
                hint="give --model NAME, whose text encoder can, or --captioner OWNER/NAME, any vision-language model",
            )
