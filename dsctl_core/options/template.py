"""Template models: which, with which trained weights, whether their code may run, and what they are given."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from dsctl_core.errors import UsageError
from dsctl_core.options.base import Options
from dsctl_core.options.effects import NO_TEMPLATE, Idle
from dsctl_core.options.messages import Spelled, Takes
from dsctl_core.readable import counted

MODEL = "template_model"  # the component that a template is
INPUTS = "template_inputs"  # the column of a row, and the input, that a template is given
WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class TemplateSource:
    """A template, by its folder or its repository on a hub, and the file of weights to use instead of its own."""

    form: ClassVar[str] = "DIR[:FILE]"

    source: str
    checkpoint: Path | None = None

    @classmethod
    def parse(cls, text: Any) -> TemplateSource:
        """Read DIR, DIR:FILE.safetensors, OWNER/NAME:, OWNER/NAME@REVISION or OWNER/NAME:FILE.safetensors.

        A colon belongs to the folder where the whole text is a path that exists.
        """
        if isinstance(text, TemplateSource):
            return text
        if isinstance(text, dict):  # from run.json
            return cls(text["source"], None if text["checkpoint"] is None else Path(text["checkpoint"]))
        if not isinstance(text, str) or not text.strip():
            raise ValueError("this names no template")
        if Path(text).exists() or not text.endswith(WEIGHTS):
            return cls(text)
        places = [place for place, letter in enumerate(text) if letter == ":" and place > 1]
        if not places:
            raise ValueError("this is a file; a template is the folder that holds model.py")
        folders = [place for place in places if Path(text[:place]).is_dir()]
        place = (folders or places)[-1]
        if place == len(text) - len(WEIGHTS) - 1:
            raise ValueError("there is no file name after the colon")
        source = text[:place]
        # The colon that marks a repository on a hub was used up for the file.
        return cls(source if Path(source).exists() or "@" in source else f"{source}:", Path(text[place + 1 :]))

    def __str__(self) -> str:
        return self.source if self.checkpoint is None else f"{self.source.removesuffix(':')}:{self.checkpoint}"


@dataclass(frozen=True)
class TemplateInputs:
    """The inputs of one template."""

    form: ClassVar[str] = "JSON"

    values: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: Any) -> TemplateInputs:
        """Read a JSON object."""
        from dsctl_core.files.json import decode_option

        if isinstance(text, TemplateInputs):
            return text
        if not isinstance(text, str):
            raise ValueError(f"{text!r} is no text")
        values = decode_option(text)
        if not isinstance(values, dict):
            raise ValueError("this is no JSON object")
        return cls(values)

    def __str__(self) -> str:
        return json.dumps(self.values)


DIR_OR_HUB = "DIR, DIR:FILE.safetensors or OWNER/NAME: of a hub"
OneTemplate = Annotated[TemplateSource, BeforeValidator(TemplateSource.parse), Takes(DIR_OR_HUB)]
SeveralTemplates = Annotated[
    tuple[Annotated[TemplateSource, BeforeValidator(TemplateSource.parse)], ...], Takes(DIR_OR_HUB)
]
SeveralInputs = Annotated[
    tuple[Annotated[TemplateInputs, BeforeValidator(TemplateInputs.parse)], ...],
    Takes('a JSON object, such as {"scale": 0.8}'),
]
TRUST = "Run the template's model.py, which is code: it can do whatever this user can."


class TemplateOptions(Options):
    """The template to train, or to train with."""

    panel: ClassVar[str] = "Template"

    template: Annotated[OneTemplate | None, Spelled("--template-model-id-or-path")] = Field(
        None, description="Template: its folder, or OWNER/NAME: on a hub; with :FILE, start from these weights of it."
    )
    trust_template: bool = Field(False, description=TRUST)


class TemplateUseOptions(Options):
    """The templates that steer a picture."""

    panel: ClassVar[str] = "Template"
    idle: ClassVar[tuple[Idle, ...]] = (NO_TEMPLATE,)

    template: SeveralTemplates = Field(
        (),
        description="Template: its folder, or OWNER/NAME: on a hub; with :FILE, its trained weights. "
        "Can be given several times.",
    )
    template_inputs: SeveralInputs = Field(
        (), description="What the template is given, as JSON; once for each --template, in the same order."
    )
    negative_template_inputs: SeveralInputs = Field(
        (), description="The same for what the picture is guided away from. Left out: no template there."
    )
    trust_template: bool = Field(False, description=TRUST)

    def check(self) -> None:
        """Raise a UsageError for inputs of more or fewer templates than there are."""
        for name in ("template_inputs", "negative_template_inputs"):
            given, flag = len(getattr(self, name)), f"--{name.replace('_', '-')}"
            if given not in (0, len(self.template)):
                raise UsageError(
                    f"{flag} is given {counted(given, 'time')} for {counted(len(self.template), 'template')}",
                    hint=f"give {flag} once for each --template, in the same order; {{}} is nothing",
                )
