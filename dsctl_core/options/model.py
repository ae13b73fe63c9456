"""Options that name the model: a preset, a folder, or the weights of each component."""

import json
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from dsctl_core.errors import UsageError
from dsctl_core.files.json import decode_option
from dsctl_core.options.base import Alternative, Options, Text, split_names
from dsctl_core.options.messages import Takes

PATHS = (
    'a JSON list of paths and lists of shards, such as ["dit.safetensors", ["te-1.safetensors", "te-2.safetensors"]]'
)
IDS = "OWNER/NAME:PATTERN, separated by commas"


def _checked_model_paths(value: Any) -> Any:
    """Check that the text is JSON in the shape `["a", ["b-1", "b-2"]]`; a list, as from run.toml, becomes such text."""
    text = json.dumps(value) if isinstance(value, list) else value
    if not isinstance(text, str):
        return value
    parse_model_paths(text)
    return text


def parse_model_paths(text: str) -> list[str | list[str]]:
    """Return the paths and lists of shards in the JSON list `text`; raise a ValueError that says what is wrong."""
    entries = decode_option(text)
    if not isinstance(entries, list) or not entries:
        raise ValueError(
            'this is not a JSON list of paths, such as ["dit.safetensors", ["a.safetensors", "b.safetensors"]]'
        )
    for entry in entries:
        paths = entry if isinstance(entry, list) else [entry]
        if not paths or not all(isinstance(path, str) and path and "\0" not in path for path in paths):
            raise ValueError(f"{json.dumps(entry)} is neither a path nor a list of paths")
    return entries


def _checked_ids(value: Any) -> Any:
    """Check that each entry has the form "owner/name:pattern"."""
    if isinstance(value, str):
        for entry in value.split(","):
            model_id, colon, pattern = entry.strip().partition(":")
            if not colon or not pattern or "/" not in model_id:
                raise ValueError(f"{entry.strip()!r} does not have the form OWNER/NAME:PATTERN")
    return value


def _checked_parts(value: Any) -> Any:
    """Turn "a,b", a JSON list of paths and lists of shards, or a list into the names and locations in it."""
    if not isinstance(value, str):
        return tuple(value) if isinstance(value, list) else value
    text = value.strip()
    if not text.startswith("["):
        return split_names(value)
    lists = decode_option(f"[{text}]")  # a flag that is repeated has its lists one after the other
    parts: list[str] = []
    for entry in (entry for each in lists for entry in (each if isinstance(each, list) else [each])):
        paths = entry if isinstance(entry, list) else [entry]
        if not paths or not all(isinstance(path, str) and path for path in paths):
            raise ValueError(f"{json.dumps(entry)} is neither a path nor a list of paths")
        parts += paths
    return tuple(parts)


PARTS = "components, OWNER/NAME:PATTERN, or a JSON list of paths"
ModelParts = Annotated[tuple[str, ...], BeforeValidator(_checked_parts), Takes(PARTS)]


class WeightOptions(Options):
    """Where the weights are, for commands that can do without and read no prompts."""

    panel: ClassVar[str] = "Model"
    exclusive: ClassVar[tuple[Alternative, ...]] = (("model", "model_paths"), ("model", "model_id_with_origin_paths"))

    model: Text | None = Field(
        None, description="A preset (`dsctl models` lists them), or a model folder in diffusers layout."
    )
    model_paths: Annotated[str, BeforeValidator(_checked_model_paths), Takes(PATHS)] | None = Field(
        None, description="Weight files instead of --model, as JSON: a path, or a list of shards, for each component."
    )
    model_id_with_origin_paths: Annotated[str, BeforeValidator(_checked_ids), Takes(IDS)] | None = Field(
        None, description="Weights on a hub instead of --model: OWNER/NAME:PATTERN, separated by commas."
    )

    @property
    def names_model(self) -> bool:
        """Whether a model is named here."""
        return any(value is not None for value in (self.model, self.model_paths, self.model_id_with_origin_paths))

    def require_model(self) -> None:
        """Refuse the options when they name no model."""
        if not self.names_model:
            raise UsageError(
                "no model is given",
                hint="give --model NAME (`dsctl models` lists the names) or --model FOLDER",
            )


class SomeModelOptions(WeightOptions):
    """Where the weights and the tokenizer are, for commands that can do without."""

    panel: ClassVar[str] = "Model"

    tokenizer_path: Text | None = Field(None, description="The tokenizer's folder, where it is not beside the weights.")


class ModelOptions(SomeModelOptions):
    """Where the weights are."""

    panel: ClassVar[str] = "Model"

    def check(self) -> None:
        """Raise a UsageError where no model is named."""
        self.require_model()
