"""One run of `dsctl infer`, from the options to the pictures or clips on the disk.

What is cheap is checked first: prompts, sizes, pictures, LoRA files and the output path, before any weights are loaded.
A run that fails leaves no folder behind that was not there, and no picture or clip that is cut off.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dsctl_core.checkpoint.trained_part import TrainedPart
from dsctl_core.commands.infer_control import CONTROL_PICTURES, control_inputs
from dsctl_core.commands.infer_inputs import Settings, read_prompts, read_start
from dsctl_core.commands.infer_offload import Waiting, choose_offload, place, refuse_for_stored
from dsctl_core.commands.infer_vace import follows
from dsctl_core.errors import UsageError
from dsctl_core.families.controlnets import with_controlnets
from dsctl_core.families.resolve import ResolvedModel, resolve_model
from dsctl_core.files.atomic import unclaim
from dsctl_core.lora.files import lora_weights
from dsctl_core.media.clip_file import check_clip_file
from dsctl_core.media.image_file import layer_files
from dsctl_core.media.made_file import DRAWN, PICTURE_SUFFIX, grid_of, write_made
from dsctl_core.options import DatasetCaptionOptions, InferOptions
from dsctl_core.options.base import Solver
from dsctl_core.options.model_effects import STILL
from dsctl_core.options.quantize import quantized_pairs, require_library
from dsctl_core.options.template import TemplateInputs, TemplateUseOptions
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.remote.address import is_remote
from dsctl_core.remote.files_output import FilesOutput, files_output
from dsctl_core.version import __version__

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from dsctl_core.media.clip import Clip
    from dsctl_core.media.layers import Layers
    from dsctl_core.pipeline import BasePipeline
    from dsctl_core.template.pipeline import TemplatePipeline

Step = TypeVar("Step")
NOTHING_WAITS = Waiting()


@dataclass(frozen=True)
class InferResult:
    """The files that were written: the images or clips in order, each before its layers; the grid if there is one."""

    files: list[Path]
    grid: Path | None
    seconds: float
    clips: bool  # whether they are clips


def infer(options: InferOptions, progress: Progress | None = None) -> InferResult:
    """Make the pictures or clips that `options` ask for and write them.

    Raises DsctlError for anything that cannot be used.
    """
    began = time.perf_counter()
    progress = progress or NoProgress()
    prompts = read_prompts(options)
    weights = options.weights
    resolved = resolve_model(
        weights.model, weights.model_paths, weights.model_id_with_origin_paths, weights.tokenizer_path
    )
    resolved = with_controlnets(resolved, options.controls.controlnet)
    start = read_start(options, resolved)
    settings = start.settings
    steered = control_inputs(options, resolved, settings)
    output = choose_output(options, settings, resolved.family.title)
    # Without a prompt there is one, that of the model that is to decompose a picture.
    files = output_files(output, max(len(prompts), 1) * options.num_images, options.grid)
    place = files_output(output)
    check_output(place, [*files, output] if options.grid else files)
    check_output(place, (layer for file in files for layer in layer_files(file, settings.layers or 0)))
    # A picture is decomposed from pure noise.
    started = {"denoising_strength": options.denoising_strength} if settings.layers is None else {}
    for lora in options.lora:
        lora_weights(lora.path)
    trained = [TrainedPart.at(path, resolved.family, resolved.parts.components) for path in options.trained_part]
    for name, form in quantized_pairs(options.quantize):
        resolved.check_component(name)
        require_library(form)
    refuse_for_stored(options, resolved, {part.component for part in trained})
    device, dtype = placement(options)
    call: dict[str, Any] = {
        "negative_prompt": options.negative_prompt,
        "height": settings.height,
        "width": settings.width,
        "cfg_scale": settings.cfg_scale,
        "tiled": options.tiled,
        **started,
        **settings.of_kind,
        **start.inputs,
        **steered,
    }
    longest = max(prompts, key=len, default="")
    offload, why = choose_offload(options, resolved, device, dtype, {**call, "prompt": longest})
    templates = open_templates(options.templates, device, dtype)
    folders = () if is_remote(output) else (output.parent, *output.parent.parents)
    new_folders = [path for path in folders if not path.exists()]
    try:
        place.prepare()
        progress.note(f"Loading {resolved.label}")
        if why is not None:
            progress.note(why)
        pipe: Any = load(options, resolved, device, dtype, trained, offload)
        if not prompts:
            prompts = [pipe.caption(start.inputs["edit_image"][0], settings.height, settings.width)]
            progress.note(f"The picture shows: {prompts[0]}")
        make: Callable[..., Image | Clip | Layers] = (
            pipe if templates is None else functools.partial(templates, pipe, **template_inputs(options.templates))
        )
        progress.start("Denoising", len(files) * settings.num_inference_steps)
        seeds = range(options.seed, options.seed + options.num_images)
        kept: list[Image | Clip | Layers] = []
        written: list[Path] = []
        for number, (prompt, seed) in enumerate(itertools.product(prompts, seeds)):
            made = make(
                prompt=prompt,
                seed=seed,
                num_inference_steps=settings.num_inference_steps,
                progress_bar_cmd=counted(progress, f"{number + 1}/{len(files)}"),
                **call,
            )
            about = {"prompt": prompt, "seed": seed, **parameters(options, settings, pipe.solver)}
            written += write_to(place, files[number], made, about)
            kept += [made] if options.grid else []
        progress.finish()
        if options.grid:
            columns = options.num_images if 1 < options.num_images < len(files) else math.ceil(math.sqrt(len(files)))
            about = {"prompts": prompts, "seeds": list(seeds), **parameters(options, settings, pipe.solver)}
            write_to(place, output, grid_of(kept, columns), about)
    finally:
        unclaim(new_folders)
    seconds = time.perf_counter() - began
    return InferResult(written, output if options.grid else None, seconds, clips=(settings.num_frames or 1) > 1)


def choose_output(options: InferOptions, settings: Settings, title: str) -> Path:
    """Return the path of `--output`, or its default; raise an error for a format that cannot hold what is made.

    A clip of one frame can be a PNG. `title` is that of the family, for the message.
    """
    frames, output = settings.num_frames, options.output
    if output is None:
        output = Path("output.mp4" if frames is not None and frames > 1 else "output.png")
    picture = output.suffix.lower() == PICTURE_SUFFIX
    if frames is None and not picture:
        raise UsageError(
            f"--output is {str(output)!r}, a clip, and {title} makes pictures",
            hint=f"give it a name that ends in {PICTURE_SUFFIX}",
        )
    if frames is not None and frames > 1 and picture:
        raise UsageError(
            f"--output is {str(output)!r}, which holds no clip, and {title} makes clips",
            hint="give it a name that ends in .mp4, .gif or .webp, or give --num-frames 1",
        )
    if settings.fps is not None and not picture:
        check_clip_file(output, settings.fps)
    elif frames == 1:
        STILL.refuse(options)
    return output


def output_files(output: Path, count: int, with_grid: bool) -> list[Path]:
    """Return the file of each picture or clip: FILE.png for a single one, else FILE-001.png, FILE-002.png, ..."""
    if count == 1 and not with_grid:
        return [output]
    return [output.with_name(f"{output.stem}-{number:03}{output.suffix}") for number in range(1, count + 1)]


def check_output(place: FilesOutput, files: Iterable[Path]) -> None:
    """Raise a DsctlError for a file that would have to replace anything but a picture or clip of this command."""
    for file in files:
        place.require_replaceable(file.name, DRAWN, "--output")


def write_to(place: FilesOutput, file: Path, made: Image | Clip | Layers, about: Mapping[str, Any]) -> list[Path]:
    """Write what was made to `file`, of layers each beside it; return the files."""
    with place.writing(file.name) as path:
        return [file.with_name(each.name) for each in write_made(path, made, about)]


def placement(options: InferOptions | DatasetCaptionOptions) -> tuple[torch.device, torch.dtype]:
    """Return the device and the precision that are asked for, else those that suit this machine."""
    import torch

    from dsctl_core.memory.mps import require_mps

    if options.device == "mps":
        require_mps()
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


def load(
    options: InferOptions,
    resolved: ResolvedModel,
    device: torch.device,
    dtype: torch.dtype,
    trained: Sequence[TrainedPart] = (),
    offload: Waiting = NOTHING_WAITS,
) -> BasePipeline:
    """Load the pipeline, with its trained parts and its LoRAs, onto the device, but for what `offload` says."""
    import torch

    from dsctl_core.lora.layers import fuse_loras
    from dsctl_core.memory.fused import use_fused_norms
    from dsctl_core.memory.quantize import quantize

    quantized = quantized_pairs(options.quantize)
    denoisers = [each.name for each in resolved.parts.denoisers]
    # Several take turns: one that comes from main memory goes back there without a copy.
    in_turn = denoisers if len(denoisers) > 1 else []
    waiting = [*(name for name, _ in quantized), *in_turn] if offload.place == "none" else resolved.parts.components
    pipe = resolved.load_pipeline(torch_dtype=dtype, device=device, on_host=waiting)
    for part in trained:
        part.put_into(pipe.component(part.component))
    pipe.solver = options.solver or pipe.solver
    # The scales stay, so nothing has to be computed beside the weights at each step.
    fuse_loras(pipe, [(lora.path, lora.scale) for lora in options.lora], [name for name, _ in quantized])
    for name, form in quantized:
        packed_on = torch.device("cpu") if offload.place == "blocks" and name in denoisers else device
        quantize(pipe.component(name), form, dtype, device, packed_on)
        if packed_on == device and (offload.place != "none" or name in in_turn):  # where the next may need the room
            pipe.component(name).to("cpu")
    for network in pipe.iteration_modules().values():
        use_fused_norms(network)
    place(pipe, offload)
    return pipe


def counted(progress: Progress, picture: str) -> Callable[[Iterable[Step]], Iterator[Step]]:
    """Return a progress bar for a pipeline: it reports each step that is done."""

    def bar(steps: Iterable[Step]) -> Iterator[Step]:
        for step in steps:
            yield step
            progress.advance(picture=picture)

    return bar


def parameters(options: InferOptions, settings: Settings, solver: Solver) -> dict[str, Any]:
    """Return what all pictures or clips of a run have in common, for their metadata."""
    weights, templates = options.weights, options.templates
    shared: dict[str, Any] = {
        "negative_prompt": options.negative_prompt,
        "num_inference_steps": settings.num_inference_steps,
        "solver": solver,
        "cfg_scale": settings.cfg_scale,
        "height": settings.height,
        "width": settings.width,
        **settings.of_kind,
        "model": weights.model or weights.model_paths or weights.model_id_with_origin_paths,
        "loras": [{"path": str(lora.path), "scale": lora.scale} for lora in options.lora],
    }
    if templates.template:
        shared["templates"] = [str(template) for template in templates.template]
        shared |= template_inputs(templates)
    starts = {name: getattr(options, name) for name in ("input_image", "end_image", "input_video")}
    shared |= {name: str(path) for name, path in starts.items() if path is not None}
    if options.input_video is not None or (options.input_image is not None and settings.num_frames is None):
        mask = None if options.inpaint_mask is None else str(options.inpaint_mask)
        shared |= {"inpaint_mask": mask, "denoising_strength": options.denoising_strength}
    if options.controls.controlnet:
        shared["controlnet"] = [str(each) for each in options.controls.controlnet]
        shared |= {name: [str(path) for path in getattr(options.controls, name)] for name in CONTROL_PICTURES}
    if options.edit_image:
        shared["edit_image"] = [str(path) for path in options.edit_image]
    if options.trained_part:
        shared["trained_parts"] = [str(path) for path in options.trained_part]
    shared |= follows(options)
    if options.embedded_guidance is not None:
        shared["embedded_guidance"] = options.embedded_guidance
    return {**shared, "dsctl_version": __version__}
