"""All options of `dsctl infer`."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from dsctl_core.errors import UsageError
from dsctl_core.options.base import Alternative, ComposedOptions, Count, Device, Seed, Side, Solver, Text
from dsctl_core.options.control import ControlUseOptions
from dsctl_core.options.data import check_whole_size
from dsctl_core.options.effects import Idle
from dsctl_core.options.guidance import GuidanceScale
from dsctl_core.options.lora import LoraFiles
from dsctl_core.options.model import ModelOptions
from dsctl_core.options.model_effects import CLIP_REPLACED, NO_PICTURE
from dsctl_core.options.mps import refuse_on_mps
from dsctl_core.options.quantize import Quantized
from dsctl_core.options.template import TemplateUseOptions
from dsctl_core.options.vace import VaceOptions

Offload = Literal["auto", "none", "components", "blocks"]
SUFFIXES = (".png", ".mp4", ".gif", ".webp")


def no_prompt() -> UsageError:
    """Return the error for pictures that are to be made without a prompt."""
    return UsageError("no prompt is given", hint='give --prompt "..." or --prompts-file FILE')


class InferOptions(ComposedOptions):
    """Options of `dsctl infer`."""

    panel: ClassVar[str] = "Picture or clip"
    remote: ClassVar[frozenset[str]] = frozenset({"output"})
    exclusive: ClassVar[tuple[Alternative, ...]] = (("prompt", "prompts_file"),)
    idle: ClassVar[tuple[Idle, ...]] = (NO_PICTURE, CLIP_REPLACED)

    weights: ModelOptions
    templates: TemplateUseOptions
    controls: ControlUseOptions
    vace: VaceOptions

    prompt: Text | None = Field(
        None,
        description="What the picture or clip is to show. Left out, on a model that decomposes a picture: it describes "
        "that itself.",
    )
    prompts_file: Path | None = Field(None, description="Text file with a prompt a line, instead of --prompt.")
    negative_prompt: str = Field("", description="What the picture or clip is not to show.")
    lora: LoraFiles = Field(
        (), description="LoRA to apply, FILE or FILE:SCALE, in any format. Can be given several times."
    )
    trained_part: tuple[Path, ...] = Field(
        (),
        description="Trained part to put into the model: weights that `dsctl train --trainable-models dit.MODULE` has "
        "written. Can be given several times.",
    )
    height: Side | None = Field(
        None,
        description="Height in pixels. Left out, with --width: the model's own size, and for a clip from a picture or "
        "another clip its shape.",
    )
    width: Side | None = Field(None, description="Width in pixels.")
    num_frames: Count | None = Field(
        None,
        description="Frames of a clip. Left out: the model's own number, or those of a shorter --input-video.",
    )
    fps: Annotated[float, Field(ge=1, le=240)] | None = Field(
        None, description="Frames a second of a clip, and of its input video. Left out: the model's own."
    )
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="Denoising steps. Left out: the model's own number."
    )
    solver: Solver | None = Field(
        None,
        description="How the denoising steps follow the model. Left out: the one that the model is published with.",
    )
    cfg_scale: GuidanceScale | None = Field(
        None,
        description="How strongly to follow the prompt; 1 is no guidance. Of two denoisers each can have its own: "
        "dit=4,dit_2=3. Left out: the model's own.",
    )
    seed: Seed = Field(0, description="Seed of the first picture or clip; each further one has the next seed.")
    num_images: Annotated[int, Field(ge=1, le=10000)] = Field(1, description="Pictures or clips for each prompt.")
    input_image: Path | None = Field(
        None,
        description="Picture to start from, or first frame of the clip, scaled to cover the size and cut off evenly.",
    )
    end_image: Path | None = Field(None, description="Last frame of the clip, scaled like --input-image.")
    input_video: Path | None = Field(
        None, description="Clip to start from: its frames at --fps, scaled like --input-image."
    )
    denoising_strength: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="How much of --input-image or --input-video to replace: near 0 keeps it, 1 replaces all."
    )
    inpaint_mask: Path | None = Field(
        None,
        description="Picture as large as --input-image or --input-video: white is painted anew, black is kept.",
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
    output: Path | None = Field(
        None,
        description="File to write, or its address: .png, or .mp4, .gif or .webp for a clip. Several: FILE-001.png, "
        "FILE-002.png, ...; layers: FILE-layer-1.png, ... Left out: output.png or output.mp4.",
    )
    grid: bool = Field(False, description="Write all pictures or clips as one to --output, and each of them beside it.")
    tiled: bool = Field(False, description="Encode and decode in tiles, to save memory.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="Precision of the model. Left out: bfloat16 on a GPU that has it, else float32."
    )
    quantize: Quantized = Field(
        (),
        description="Components to hold in 4 or 8 bits: dit=nf4,text_encoder=int8. Formats: int8, "
        "float8, nf4 (which needs bitsandbytes).",
    )
    offload: Offload = Field(
        "auto",
        description="What waits in main memory until it is needed: none, components, or blocks of the denoiser too. "
        "auto: as little as the free memory of the GPU allows.",
    )
    device: Device | None = Field(None, description="cpu, cuda, cuda:N or mps. Left out: cuda if there is one.")

    @field_validator("output")
    @classmethod
    def _some_format(cls, output: Path | None) -> Path | None:
        if output is not None and output.suffix.lower() not in SUFFIXES:
            raise UsageError(
                f"--output is {str(output)!r}, which is no PNG and no clip",
                hint="give it a name that ends in .png, or in .mp4, .gif or .webp for a clip",
            )
        return output

    @field_validator("prompt")
    @classmethod
    def _some_prompt(cls, prompt: str | None) -> str | None:
        if prompt is not None and not prompt.strip():
            raise UsageError(f"--prompt is {prompt!r}, which says nothing", hint="say what the picture is to show")
        return prompt

    def check(self) -> None:
        """Raise a UsageError for options that do not go together."""
        given = {"--quantize": self.quantize, "--offload": self.offload not in ("auto", "none")}
        refuse_on_mps(self.device, given, precisions={"--dtype": self.dtype})
        # A model that decomposes a picture can do so without a prompt; other models are not known yet.
        if self.prompt is None and self.prompts_file is None and not self.edit_image:
            raise no_prompt()
        check_whole_size(self.height, self.width)
