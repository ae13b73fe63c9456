"""Read the inputs of a run of `dsctl infer`, before any weights are loaded: settings, prompts, pictures and clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from dsctl_core.commands.infer_vace import vace_inputs
from dsctl_core.commands.infer_video import InputVideo, Size, read_input, require_size
from dsctl_core.data.frame_rule import FrameRule, ShortClips
from dsctl_core.data.images import LoadImage
from dsctl_core.data.prompt_file import prompt_lines
from dsctl_core.data.sizes import ImageCropAndResize, clip_size, require_same_ratio
from dsctl_core.errors import UsageError
from dsctl_core.families.controlnets import painting_on_input
from dsctl_core.families.resolve import ResolvedModel
from dsctl_core.family import Family
from dsctl_core.options import InferOptions
from dsctl_core.options.infer import no_prompt
from dsctl_core.options.model_effects import (
    DECOMPOSES,
    EDITS_NOTHING,
    GUIDANCE_OFF,
    NO_CLIP,
    NO_FIRST_FRAME,
    NO_GUIDANCE_INPUT,
    NO_LAST_FRAME,
    NO_LAYERS,
    NO_VACE,
    PICTURE_REPLACED,
    PICTURES_ONLY,
)
from dsctl_core.units import is_guided

if TYPE_CHECKING:
    from PIL.Image import Image

    from dsctl_core.denoising import CfgScale

# Options that name one picture each, which is fitted to the size; and of these, the frames of a clip
PICTURES, FRAMES = ("input_image", "end_image", "inpaint_mask"), ("input_image", "end_image")


@dataclass(frozen=True)
class Settings:
    """The settings of a run of inference: the options, with the model's defaults for those that are not set."""

    height: int
    width: int
    num_inference_steps: int
    cfg_scale: CfgScale
    num_frames: int | None = None  # of a clip, and its frames a second; None for a model of pictures
    fps: float | None = None
    layers: int | None = None  # None for a model that makes none

    @property
    def of_kind(self) -> dict[str, Any]:
        """The settings that only clips or layers have, by name."""
        named = {"num_frames": self.num_frames, "fps": self.fps, "layers": self.layers}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class Start:
    """The settings of a run, and the pictures and clips that it starts from, as inputs of the pipeline."""

    settings: Settings
    inputs: dict[str, Any]


def read_prompts(options: InferOptions) -> list[str]:
    """Return the prompt, or those of the file: one a line, empty lines left out; nothing if there is none."""
    if options.prompt is not None:
        return [options.prompt]
    return [] if options.prompts_file is None else prompt_lines(options.prompts_file, "--prompts-file")


def read_start(options: InferOptions, resolved: ResolvedModel) -> Start:
    """Check the options against the model, and read the pictures and clips that they name.

    Raises UsageError for an option that has no effect on this model and for a missing one, and DsctlError for a file
    that cannot be used.
    """
    refuse_unknown_inputs(options, resolved)
    opened = {
        name: read_input(name, LoadImage(), path) for name in PICTURES if (path := getattr(options, name)) is not None
    }
    # With its transparency for a model that reads it.
    load = LoadImage(convert_RGBA=resolved.family.decomposes)
    references = [read_input("edit_image", load, path) for path in options.edit_image]
    video, followed = _open_videos(options, resolved)
    leading = video or followed
    frames = [leading.size] if leading is not None else [opened[name].size for name in FRAMES if name in opened]
    settings = fill_in(options, resolved, references, frames)
    if leading is not None:
        settings = replace(settings, num_frames=leading.frames)
    factor = resolved.parts.division_factor
    fit = ImageCropAndResize(settings.height, settings.width, None, factor, factor)
    inputs: dict[str, Any] = {name: fit(picture) for name, picture in opened.items()}
    if options.inpaint_mask is not None:
        name, size = ("input_image", opened["input_image"].size) if video is None else ("input_video", video.size)
        require_size("inpaint_mask", opened["inpaint_mask"].size, name, size)
    if video is not None:
        inputs["input_video"] = video.load(fit)
    if references:
        inputs["edit_image"] = references
    if options.embedded_guidance is not None:
        inputs["embedded_guidance"] = options.embedded_guidance
    inputs |= vace_inputs(options, followed, fit)
    return Start(settings, inputs)


def _open_videos(options: InferOptions, resolved: ResolvedModel) -> tuple[InputVideo | None, InputVideo | None]:
    """Return the clip to start from and the one to follow, which has as many frames; None for those not named."""
    video = None if options.input_video is None else _open_video(options, resolved, "input_video", None)
    frames = None if video is None else video.frames
    named = options.vace.vace_video is not None
    return video, _open_video(options, resolved, "vace_video", frames) if named else None


def refuse_unknown_inputs(options: InferOptions, resolved: ResolvedModel) -> None:
    """Raise a UsageError for an input that the model does not take, and for a frame that it needs."""
    family, frames = resolved.family, resolved.family.frame_inputs(resolved.parts)
    if "edit_image" not in family.extra_inputs:
        EDITS_NOTHING.refuse(options, title=family.title)
    if "vace_video" not in family.extra_inputs:
        NO_VACE.refuse(options, title=family.title)
    if not family.embedded_guidance:
        NO_GUIDANCE_INPUT.refuse(options, title=family.title)
    _refuse_layers(options, family)
    if family.time_division is None:
        PICTURES_ONLY.refuse(options, title=family.title)
        read = options.inpaint_mask is not None or painting_on_input(resolved) is not None
        if not read and options.denoising_strength == 1:
            PICTURE_REPLACED.refuse(options)
        return
    for name, unused in (("input_image", NO_FIRST_FRAME), ("end_image", NO_LAST_FRAME)):
        if not frames.takes(name):
            unused.refuse(options, model=resolved.label)
        if name in frames.needed and getattr(options, name) is None:
            flag, what = f"--{name.replace('_', '-')}", "first" if name == "input_image" else "last"
            raise UsageError(
                f"{flag} is missing: {resolved.label} makes clips from their {what} frame", hint=f"give {flag} FILE"
            )
    if options.input_video is None:
        NO_CLIP.refuse(options, title=family.title)


def _refuse_layers(options: InferOptions, family: Family) -> None:
    """Raise a UsageError for layers of another model, and unless a model of layers has one picture to decompose."""
    if not family.decomposes:
        NO_LAYERS.refuse(options, title=family.title)
        if options.prompt is None and options.prompts_file is None:
            raise no_prompt()
        return
    DECOMPOSES.refuse(options, title=family.title)
    if len(options.edit_image) != 1:
        given = "none is" if not options.edit_image else f"{len(options.edit_image)} are"
        raise UsageError(
            f"{family.title} decomposes one picture, but {given} given", hint="give --edit-image FILE once"
        )


def fill_in(
    options: InferOptions,
    resolved: ResolvedModel,
    references: Sequence[Image] = (),
    frames: Sequence[Size] = (),
) -> Settings:
    """Return the size, steps, guidance, frames and rate: those that are set, else the model's own.

    Where no size is set, an edited picture has the aspect ratio of one of `references`, as the family has it, and a
    clip that of the first of `frames`, each a (width, height).
    """

    def chosen(name: str) -> Any:
        value = getattr(options, name)
        return resolved.defaults[name] if value is None else value

    height, width, of_clips = chosen("height"), chosen("width"), resolved.family.time_division is not None
    if options.height is None and of_clips and frames:
        width, height = clip_size(frames[0], height * width, resolved.parts.division_factor)
    elif options.height is None and references:
        width, height = resolved.edited_size(references, height * width)
    of_kind = {name: chosen(name) for name in ("num_frames", "fps") if of_clips}
    if resolved.family.decomposes:
        of_kind["layers"] = chosen("layers")
        require_same_ratio(references[0].size, (width, height))
    own, denoisers = resolved.defaults["cfg_scale"], [denoiser.name for denoiser in resolved.parts.denoisers]
    cfg_scale = own if options.cfg_scale is None else options.cfg_scale.of(denoisers, own)
    settings = Settings(height, width, chosen("num_inference_steps"), cfg_scale, **of_kind)
    if not is_guided(settings.cfg_scale):
        GUIDANCE_OFF.refuse(options)
    if resolved.family.time_division is not None and settings.num_frames is not None:
        FrameRule(settings.num_frames, *resolved.family.time_division)  # raises the error for another number
    return settings


def _open_video(options: InferOptions, resolved: ResolvedModel, name: str, frames: int | None) -> InputVideo:
    """Open the clip of the option `name`, of `frames` frames, or of as many as are asked for."""
    path = options.value_of(name)
    settings = fill_in(options, resolved)
    assert resolved.family.time_division is not None
    # Without --num-frames a shorter clip is made from a shorter video.
    asked = frames is not None or options.num_frames is not None
    count, short = settings.num_frames if frames is None else frames, "refuse" if asked else "shorten"
    rule = FrameRule(count, *resolved.family.time_division, settings.fps, cast("ShortClips", short))
    return InputVideo.open(name, path, rule)
