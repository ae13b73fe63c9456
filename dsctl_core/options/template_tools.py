"""Options of `dsctl template ...`."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from dsctl_core.options.base import Argument, Options, Text
from dsctl_core.options.hub import UploadOptions
from dsctl_core.options.messages import Takes
from dsctl_core.options.template import TRUST, OneTemplate, TemplateInputs

OneInputs = Annotated[
    TemplateInputs, BeforeValidator(TemplateInputs.parse), Takes('a JSON object, such as {"scale": 0.8}')
]


class _RunningOptions(Options):
    """Options for running a template once."""

    panel: ClassVar[str] = "Running it"

    model: Text = Field("tiny", description="Preset or model folder to run it on.")
    template_inputs: OneInputs = Field(TemplateInputs(), description="What the template is given, as JSON.")
    trust_template: bool = Field(False, description=TRUST)


class TemplateInitOptions(Options):
    """Options of `dsctl template init`."""

    panel: ClassVar[str] = "Skeleton"

    name: Annotated[Path, Argument()] = Field(description="The folder to write.")
    kind: Literal["value", "image"] = Field("value", description="What it is given: a number, or a picture.")
    model: Text = Field("tiny", description="Preset or model folder that it is for; it need not be downloaded.")


class TemplateCheckOptions(_RunningOptions):
    """Options of `dsctl template check`."""

    template: Annotated[OneTemplate, Argument()] = Field(
        description="The template: its folder, or OWNER/NAME: on a hub; with :FILE, its trained weights."
    )


class TemplatePackOptions(_RunningOptions):
    """Options of `dsctl template pack`."""

    panel: ClassVar[str] = "Packing"

    folder: Annotated[Path, Argument()] = Field(description="The template's folder.")
    checkpoint: Path = Field(description="The file of a training; it wins over the template's own weights.")
    output: Path = Field(description="The folder to write.")
    license: Text = Field("unknown", description="Licence that the card names, such as apache-2.0.")


class TemplateUploadOptions(UploadOptions):
    """Options of `dsctl template upload`."""

    panel: ClassVar[str] = "Upload"

    path: Annotated[Path, Argument()] = Field(description="The folder that `dsctl template pack` wrote.")
    trust_template: bool = Field(False, description=TRUST)
