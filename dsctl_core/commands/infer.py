"""One run of `dsctl infer`, from the options to the pictures on the disk.

What is cheap is checked first: prompts, sizes, pictures, LoRA files and the place to write to, before any weights
are loaded. A run that fails leaves no folder behind that was not there, and no picture that is cut off.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dsctl_core.data.images import LoadImage
from dsctl_core.data.prompt_file import prompt_lines
from dsctl_core.data.sizes import ImageCropAndResize, require_same_ratio
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.resolve import ResolvedModel, resolve_model
from dsctl_core.family import Family
from dsctl_core.files.atomic import prepare_folder, unclaim
from dsctl_core.files.ownership import require_replaceable
from dsctl_core.lora.files import lora_weights
from dsctl_core.media.image_file import DRAWN, as_picture, grid, layer_files, write_made, write_png
from dsctl_core.options import InferOptions
from dsctl_core.options.effects import DECOMPOSES, EDITS_NOTHING, GUIDANCE_OFF, NO_GUIDANCE_INPUT, NO_LAYERS
from dsctl_core.options.infer import no_prompt
from dsctl_core.options.template import TemplateInputs, TemplateUseOptions
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.version import __version__

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from dsctl_core.pipeline import BasePipeline
    from dsctl_core.template.pipeline import TemplatePipeline

Step = TypeVar("Step")


@dataclass(frozen=True)
class InferResult:
    """The files that were written: the images in order, each before its layers, and the grid if one was requested."""

    files: list[Path]
    grid: Path | None
    seconds: float


@dataclass(frozen=True)
class Settings:
    """The settings of a run of inference: the options, with the model's defaults for those that are not set.

    `layers` is None for a model that makes none.
    """

    height: int
    width: int
    num_inference_steps: int
    cfg_scale: float
    layers: int | None = None


def infer(options: InferOptions, progress: Progress | None = None) -> InferResult:
    """Make the pictures that `options` ask for and write them.

    Raises DsctlError for anything that cannot be used.
    """
    began = time.perf_counter()
    progress = progress or NoProgress()
    prompts = read_prompts(options)
    # Without a prompt there is one, that of the model that is to decompose a picture.
    files = output_files(options.output, max(len(prompts), 1) * options.num_images, options.grid)
    check_output([*files, options.output] if options.grid else files)
    weights = options.weights
    resolved = resolve_model(
        weights.model, weights.model_paths, weights.model_id_with_origin_paths, weights.tokenizer_path
    )
    refuse_unknown_inputs(options, resolved.family)
    references = read_references(options, resolved.family)
    settings = fill_in(options, resolved, references)
    check_output(layer for file in files for layer in layer_files(file, settings.layers or 0))
    inputs = read_pictures(options, settings, resolved.parts.division_factor)
    inputs |= {"edit_image": references} if references else {}
    # A picture is decomposed from pure noise.
    started = {"denoising_strength": options.denoising_strength}
    inputs |= started if settings.layers is None else {"layers": settings.layers}
    if options.embedded_guidance is not None:
        inputs["embedded_guidance"] = options.embedded_guidance
    for lora in options.lora:
        lora_weights(lora.path)
    device, dtype = placement(options)
    templates = open_templates(options.templates, device, dtype)
    made = [path for path in (options.output.parent, *options.output.parent.parents) if not path.exists()]
    try:
        prepare_folder(options.output.parent)
        progress.note(f"Loading {resolved.label}")
        pipe: Any = load(options, resolved, device, dtype)
        if not prompts:
            prompts = [pipe.caption(references[0], settings.height, settings.width)]
            progress.note(f"The picture shows: {prompts[0]}")
        make: Callable[..., Any] = (
            pipe if templates is None else functools.partial(templates, pipe, **template_inputs(options.templates))
        )
        progress.start("Denoising", len(files) * settings.num_inference_steps)
        seeds = range(options.seed, options.seed + options.num_images)
        pictures, written = [], []
        for number, (prompt, seed) in enumerate(itertools.product(prompts, seeds)):
            picture = make(
                prompt=prompt,
                negative_prompt=options.negative_prompt,
                seed=seed,
                height=settings.height,
                width=settings.width,
                num_inference_steps=settings.num_inference_steps,
                cfg_scale=settings.cfg_scale,
                tiled=options.tiled,
                progress_bar_cmd=counted(progress, f"{number + 1}/{len(files)}"),
                **inputs,
            )
            about = {"prompt": prompt, "seed": seed, **parameters(options, settings)}
            written += write_made(files[number], picture, about)
            pictures += [as_picture(picture)] if options.grid else []
        progress.finish()
        if options.grid:
            columns = options.num_images if 1 < options.num_images < len(files) else math.ceil(math.sqrt(len(files)))
            columns = 1 if settings.layers else columns  # layers are a row
            about = {"prompts": prompts, "seeds": list(seeds), **parameters(options, settings)}
            write_png(options.output, grid(pictures, columns), about)
    finally:
        unclaim(made)
    return InferResult(written, options.output if options.grid else None, time.perf_counter() - began)


def read_prompts(options: InferOptions) -> list[str]:
    """Return the prompt, or those of the file: one a line, empty lines left out; nothing if there is none."""
    if options.prompt is not None:
        return [options.prompt]
    return [] if options.prompts_file is None else prompt_lines(options.prompts_file, "--prompts-file")


def output_files(output: Path, count: int, with_grid: bool) -> list[Path]:
    """Return where each picture goes: FILE.png for a single one, else FILE-001.png, FILE-002.png, ..."""
    if count == 1 and not with_grid:
        return [output]
    return [output.with_name(f"{output.stem}-{number:03}{output.suffix}") for number in range(1, count + 1)]


def check_output(files: Iterable[Path]) -> None:
    """Raise a DsctlError for a picture that would have to replace anything but a picture of this command."""
    for file in files:
        require_replaceable(file, DRAWN, "--output")


def refuse_unknown_inputs(options: InferOptions, family: Family) -> None:
    """Refuse an input that the family does not take, and a family whose clips no PNG can hold."""
    if family.time_division is not None:
        raise UsageError(
            f"this command writes pictures, and {family.title} makes clips",
            hint="use its pipeline in Python: `pipe(prompt=...)` returns a Clip with `frames` and `fps`",
        )
    if "edit_image" not in family.extra_inputs:
        EDITS_NOTHING.refuse(options, title=family.title)
    if not family.embedded_guidance:
        NO_GUIDANCE_INPUT.refuse(options, title=family.title)
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


def read_references(options: InferOptions, family: Family) -> list[Image]:
    """Return the pictures to edit, as they are, with their transparency for a model that reads it."""
    found = []
    for path in options.edit_image:
        try:
            found.append(LoadImage(convert_RGBA=family.decomposes)(path))
        except DsctlError as error:
            raise DsctlError(f"--edit-image: {error.problem}", hint="give --edit-image another picture") from error
    return found


def fill_in(options: InferOptions, resolved: ResolvedModel, references: Sequence[Image] = ()) -> Settings:
    """Return the size, steps and guidance: those given, else the model's own.

    Where no size is given, an edited picture has the aspect ratio of one of `references`, as the family has it.
    """

    def chosen(name: str) -> Any:
        value = getattr(options, name)
        return resolved.defaults[name] if value is None else value

    height, width = chosen("height"), chosen("width")
    if references and options.height is None:
        width, height = resolved.edited_size(references, height * width)
    layers = None
    if resolved.family.decomposes:
        layers = chosen("layers")
        require_same_ratio(references[0].size, (width, height))
    settings = Settings(height, width, chosen("num_inference_steps"), chosen("cfg_scale"), layers)
    if settings.cfg_scale == 1:
        GUIDANCE_OFF.refuse(options)
    return settings


def read_pictures(options: InferOptions, settings: Settings, factor: int) -> dict[str, Any]:
    """Check the size, and return the input image and the mask, where given, fitted to it."""
    fit = ImageCropAndResize(
        height=settings.height, width=settings.width, height_division_factor=factor, width_division_factor=factor
    )
    found = {}
    sizes = {}
    for name, path in (("input_image", options.input_image), ("inpaint_mask", options.inpaint_mask)):
        if path is None:
            continue
        flag = f"--{name.replace('_', '-')}"
        try:
            picture = LoadImage()(path)
            found[name], sizes[name] = fit(picture), picture.size
        except DsctlError as error:
            raise DsctlError(f"{flag}: {error.problem}", hint=f"give {flag} another picture") from error
    if len(set(sizes.values())) > 1:
        (width, height), (mask_width, mask_height) = sizes["input_image"], sizes["inpaint_mask"]
        raise DsctlError(
            f"--inpaint-mask is {mask_width}x{mask_height}, but --input-image is {width}x{height}",
            hint="give a mask as large as the picture",
        )
    return found


def placement(options: InferOptions) -> tuple[torch.device, torch.dtype]:
    """Return the device and the precision that are asked for, else those that suit this machine."""
    import torch

    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {options.device} is asked for, but torch sees no such GPU", hint="see dsctl doctor")
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return device, getattr(torch, options.dtype or ("bfloat16" if has_bf16 else "float32"))


def open_templates(options: TemplateUseOptions, device: torch.device, dtype: torch.dtype) -> TemplatePipeline | None:
    """Load the templates that steer the pictures, None where there are none."""
    if not options.template:
        return None
    from dsctl_core.template.pipeline import TemplatePipeline
    from dsctl_core.template.source import config_of

    templates = TemplatePipeline.from_pretrained(
        torch_dtype=dtype,
        device=device,
        model_configs=[config_of(template.source) for template in options.template],
        trust_template=options.trust_template,
        checkpoints=[template.checkpoint for template in options.template],
    )
    for name, inputs in template_inputs(options).items():
        templates.refuse_unread(inputs, options.written(name))
    return templates


def template_inputs(options: TemplateUseOptions) -> dict[str, list[dict[str, Any]]]:
    """Return what each template is given, for both sides of guidance."""
    given = options.template_inputs or (TemplateInputs(),) * len(options.template)
    sides = {"template_inputs": given, "negative_template_inputs": options.negative_template_inputs}
    return {
        name: [{**each.values, "model_id": number} for number, each in enumerate(inputs)]
        for name, inputs in sides.items()
    }


def load(options: InferOptions, resolved: ResolvedModel, device: torch.device, dtype: torch.dtype) -> BasePipeline:
    """Load the pipeline and its LoRAs onto the device."""
    from dsctl_core.lora import load_lora

    pipe = resolved.load_pipeline(torch_dtype=dtype, device=device)
    for lora in options.lora:
        load_lora(pipe, lora.path, lora.scale)
    return pipe


def counted(progress: Progress, picture: str) -> Callable[[Iterable[Step]], Iterator[Step]]:
    """Return a progress bar for a pipeline: it reports each step that is done."""

    def bar(steps: Iterable[Step]) -> Iterator[Step]:
        for step in steps:
            yield step
            progress.advance(picture=picture)

    return bar


def parameters(options: InferOptions, settings: Settings) -> dict[str, Any]:
    """Return what all pictures of a run have in common, for their metadata."""
    weights, templates = options.weights, options.templates
    shared: dict[str, Any] = {
        "negative_prompt": options.negative_prompt,
        "num_inference_steps": settings.num_inference_steps,
        "cfg_scale": settings.cfg_scale,
        "height": settings.height,
        "width": settings.width,
        "model": weights.model or weights.model_paths or weights.model_id_with_origin_paths,
        "loras": [{"path": str(lora.path), "scale": lora.scale} for lora in options.lora],
    }
    if templates.template:
        shared["templates"] = [str(template) for template in templates.template]
        shared |= template_inputs(templates)
    if options.input_image is not None:
        mask = None if options.inpaint_mask is None else str(options.inpaint_mask)
        shared |= {"input_image": str(options.input_image), "inpaint_mask": mask}
        shared |= {"denoising_strength": options.denoising_strength}
    if options.edit_image:
        shared["edit_image"] = [str(path) for path in options.edit_image]
    if settings.layers is not None:
        shared["layers"] = settings.layers
    if options.embedded_guidance is not None:
        shared["embedded_guidance"] = options.embedded_guidance
    return {**shared, "dsctl_version": __version__}
