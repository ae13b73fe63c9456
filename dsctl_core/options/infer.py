"""All options of `dsctl infer`."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from dsctl_core.errors import UsageError
from dsctl_core.options.base import Alternative, ComposedOptions, Device, Seed, Side, Text
from dsctl_core.options.data import check_whole_size
from dsctl_core.options.effects import NO_PICTURE, Idle
from dsctl_core.options.lora import LoraFiles
from dsctl_core.options.model import ModelOptions
from dsctl_core.options.template import TemplateUseOptions


def no_prompt() -> UsageError:
    """Return the error for pictures that are to be made without a prompt."""
    return UsageError("no prompt is given", hint='give --prompt "..." or --prompts-file FILE')


class InferOptions(ComposedOptions):
    """Options of `dsctl infer`."""

    panel: ClassVar[str] = "Picture"
    exclusive: ClassVar[tuple[Alternative, ...]] = (("prompt", "prompts_file"),)
    idle: ClassVar[tuple[Idle, ...]] = (NO_PICTURE,)

    weights: ModelOptions
    templates: TemplateUseOptions

    prompt: Text | None = Field(
        None, description="What the picture is to show. Left out, on a model that decomposes: it describes it itself."
    )
    prompts_file: Path | None = Field(None, description="Text file with a prompt a line, instead of --prompt.")
    negative_prompt: str = Field("", description="What the picture is not to show.")
    lora: LoraFiles = Field(
        (), description="LoRA to apply, FILE or FILE:SCALE, in any format. Can be given several times."
    )
    height: Side | None = Field(None, description="Height in pixels. Left out, with --width: the model's own size.")
    width: Side | None = Field(None, description="Width in pixels.")
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="Denoising steps. Left out: the model's own number."
    )
    cfg_scale: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="How strongly to follow the prompt; 1 is no guidance. Left out: the model's own."
    )
    seed: Seed = Field(0, description="Seed of the first picture; each further one has the next seed.")
    num_images: Annotated[int, Field(ge=1, le=10000)] = Field(1, description="Pictures for each prompt.")
    input_image: Path | None = Field(
        None, description="Picture to start from, scaled to cover the size and cut off evenly."
    )
    denoising_strength: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="How much of --input-image to replace: near 0 keeps it, 1 replaces all."
    )
    inpaint_mask: Path | None = Field(
        None, description="Picture as large as --input-image: white is painted anew, black is kept."
    )
    edit_image: tuple[Path, ...] = Field(
        (), description="Picture to edit, or one of several to combine, as --prompt says. Can be given several times."
    )
    layers: Annotated[int, Field(ge=0, le=64)] | None = Field(
        None,
        description="Layers to decompose --edit-image into, on a model for that. Left out: the model's own number.",
    )
    embedded_guidance: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="Guidance that goes to the network, where it takes one. Left out: the model's own."
    )
    output: Path = Field(
        Path("output.png"),
        description="PNG to write. Several pictures: FILE-001.png, FILE-002.png, ...; layers: FILE-layer-1.png, ...",
    )
    grid: bool = Field(False, description="Write all pictures as one to --output, and each of them beside it.")
    tiled: bool = Field(False, description="Encode and decode in tiles, to save memory.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="Precision of the model. Left out: bfloat16 on a GPU that has it, else float32."
    )
    device: Device | None = Field(None, description="cpu, cuda or cuda:N. Left out: a GPU if there is one.")

    @field_validator("output")
    @classmethod
    def _a_png(cls, output: Path) -> Path:
        if output.suffix.lower() != ".png":
            raise UsageError(f"--output is {str(output)!r}, which is no PNG", hint="give it a name that ends in .png")
        return output

    @field_validator("prompt")
    @classmethod
    def _some_prompt(cls, prompt: str | None) -> str | None:
        if prompt is not None and not prompt.strip():
            raise UsageError(f"--prompt is {prompt!r}, which says nothing", hint="say what the picture is to show")
        return prompt

    def check(self) -> None:
        """Raise a UsageError for options that do not go together."""
        self._some_prompt_at_all()
        self._nothing_without_effect()

    def _some_prompt_at_all(self) -> None:
        # A model that decomposes a picture can do so without a prompt; other models are not known yet.
        if self.prompt is None and self.prompts_file is None and not self.edit_image:
            raise no_prompt()

    def _nothing_without_effect(self) -> None:
        check_whole_size(self.height, self.width)
        if self.input_image is not None and self.inpaint_mask is None and self.denoising_strength == 1:
            raise UsageError(
                "--input-image has no effect at --denoising-strength 1, which replaces all of it",
                hint="give a lower --denoising-strength, such as 0.6, or an --inpaint-mask",
            )
