"""Where the components of a pipeline are while `dsctl infer` draws: all on the GPU, or each while it is needed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.options.infer import InferOptions
from dsctl_core.options.quantize import quantized_pairs, require_library
from dsctl_core.readable import readable_bytes

if TYPE_CHECKING:
    import torch

    from dsctl_core.families.resolve import ResolvedModel
    from dsctl_core.pipeline import BasePipeline
    from dsctl_core.training.dry_run.drawing import DrawingMemory

# Bytes of a weight in the formats of --quantize, with their scales.
PACKED = {"int8": 1.0, "float8": 1.0, "nf4": 0.57}
SPARE = 0.05  # of the memory, which stays free: the prediction may be off, and something else may be on the GPU
# Where a drawing cannot be predicted: what must stay free beside the weights, for tensors at the usual sizes.
RESERVE, RESERVED_SHARE = 3 * 2**30, 0.08
# The tensors of each published model take less than its weights, so nothing has to be predicted where there is as much
# room for them.
EASY = 2

Place = Literal["none", "components", "blocks"]


@dataclass(frozen=True)
class Waiting:
    """What waits in main memory until it runs, and for blocks how many of each denoiser (None: all of them)."""

    place: Place = "none"
    blocks: int | None = None


def choose_offload(
    options: InferOptions,
    resolved: ResolvedModel,
    device: torch.device,
    dtype: torch.dtype,
    call: Mapping[str, Any],
) -> tuple[Waiting, str | None]:
    """Return what waits in main memory, and a line that says so where it was chosen from the memory that is free.

    `call` are the arguments of the call of the pipeline, from which the memory of the drawing is predicted. Raises
    UsageError for --offload on a CPU, where it has no effect.
    """
    import torch

    if device.type == "cpu":
        if options.offload != "auto":
            raise UsageError(
                f"--offload {options.offload} has no effect on a CPU: the weights are in main memory anyway",
                hint="leave it out",
            )
        return Waiting(), None
    if device.type == "mps":  # its memory is the main memory
        return Waiting(), None
    denoisers = [each.name for each in resolved.parts.denoisers]
    if options.offload != "auto":
        return Waiting(options.offload), None
    free, total = torch.cuda.mem_get_info(device)
    room = free - int(SPARE * total)
    sizes = component_bytes(options, resolved, dtype)
    if sum(sizes.values()) * EASY <= room and _usual_size(resolved, call):
        return Waiting(), None
    memory = None if options.templates.template else _predicted(options, resolved, dtype, call)
    if memory is None:
        waiting = Waiting(fitting(sizes, denoisers, free, total))
        needed = 0
    else:
        waiting, needed = fitted(memory, room)
    if waiting.place == "none":
        return waiting, None
    blocks = "" if waiting.blocks is None else f"{waiting.blocks} of the {memory.most_blocks if memory else ''} "
    what = (
        "components wait" if waiting.place == "components" else f"components, and {blocks}blocks of the denoiser, wait"
    )
    even = f"; even so about {readable_bytes(needed)} are needed: give --quantize, or a smaller size"
    return (
        waiting,
        f"not all fits into the {free / 2**30:.0f} GiB that are free: {what} in main memory "
        f"(--offload {waiting.place}){even if needed > room else ''}",
    )


def _usual_size(resolved: ResolvedModel, call: Mapping[str, Any]) -> bool:
    """Return whether no more pixels are drawn than those that the model is published for."""

    def pixels(values: Mapping[str, Any]) -> int:
        return prod(int(values.get(name) or 1) for name in ("height", "width", "num_frames", "layers"))

    return pixels(call) <= pixels(resolved.defaults)


def _predicted(
    options: InferOptions, resolved: ResolvedModel, dtype: torch.dtype, call: Mapping[str, Any]
) -> DrawingMemory | None:
    """Return what the drawing takes; None where it depends on values of tensors, or the sizes are not known."""
    from dsctl_core.training.dry_run.drawing import drawing_memory

    try:
        return drawing_memory(resolved, call, dtype, dict(quantized_pairs(options.quantize)))
    except (DsctlError, RuntimeError):  # what fake tensors cannot do is a RuntimeError of torch
        return None


def fitted(memory: DrawingMemory, room: int) -> tuple[Waiting, int]:
    """Return as little waiting as makes a drawing fit into `room` bytes, or else as much as can be; and its needs."""
    from dsctl_core.training.dry_run.gpu_rules import reserved

    def needs(**how: Any) -> int:
        return reserved(memory.peak(**how), 0)  # weights come and go too

    if (whole := needs()) <= room:
        return Waiting(), whole
    if (parts := needs(apart=True)) <= room or not memory.most_blocks:
        return Waiting("components"), parts
    counts = range(1, memory.most_blocks + 1)
    for count in counts:
        if (least := needs(apart=True, waiting_blocks=count)) <= room:
            break
    return Waiting("blocks", count), least


def fitting(sizes: dict[str, int], denoisers: list[str], free: int, total: int) -> Place:
    """Return what has to wait in main memory, where the components have `sizes` in bytes, of which one denoiser acts.

    `free` and `total` are the bytes of the device.
    """
    room = free - max(RESERVE, int(RESERVED_SHARE * total))
    acting = max((sizes.get(name, 0) for name in denoisers), default=0)
    others = sum(size for name, size in sizes.items() if name not in denoisers)
    if acting + others <= room:
        return "none"
    largest = max(sizes.values(), default=0)
    return "components" if largest <= room else "blocks"


def component_bytes(options: InferOptions, resolved: ResolvedModel, dtype: torch.dtype) -> dict[str, int]:
    """Return the bytes that each component takes on the device, from the headers of its files."""
    from dsctl_core.checkpoint.identify import weight_files
    from dsctl_core.checkpoint.load import find_component_paths
    from dsctl_core.checkpoint.quantized import stored_in
    from dsctl_core.checkpoint.stream import tensor_shapes

    formats = dict(quantized_pairs(options.quantize))
    places = find_component_paths(resolved.family, resolved.configs_of(None), resolved.reader_configs)
    found = {}
    for name, folder in places.components.items():
        if stored_in(folder) is not None:  # as it is held
            found[name] = sum(file.stat().st_size for file in weight_files(folder))
            continue
        numbers = sum(prod(shape) for file in weight_files(folder) for shape in tensor_shapes(file).values())
        found[name] = int(numbers * PACKED.get(formats.get(name, ""), dtype.itemsize))
    return found


def refuse_for_stored(options: InferOptions, resolved: ResolvedModel, replaced: Collection[str]) -> None:
    """Raise UsageError for components that their files hold in few bits, and that are to be packed.

    So are those `replaced` in part. Raises DsctlError without the library that makes them whole.
    """
    from dsctl_core.checkpoint.packed import stored_formats

    packed = {name for name, _ in quantized_pairs(options.quantize)}
    stored = stored_formats(resolved.family, resolved.configs_of(None))
    for name, form in stored.items():
        require_library(form)
        flag = "--quantize" if name in packed else "--trained-part" if name in replaced else None
        if flag is not None:
            raise UsageError(
                f"the {name} is held in {form} by its files, and {flag} needs it whole",
                hint=f"leave {flag} out, or give its weights in bf16",
            )


def place(pipe: BasePipeline, waiting: Waiting) -> None:
    """Leave what `waiting` says in main memory until it runs, and move the rest to the device of `pipe`."""
    from dsctl_core.memory.blocks import repeated_blocks
    from dsctl_core.memory.offload import offload_blocks
    from dsctl_core.placement import Placement

    if waiting.place == "none":
        idle = {each.name for each in pipe.parts.denoisers[1:]}
        pipe.load_models_to_device([name for name in pipe.components if name not in idle])
        return
    if waiting.place == "blocks":
        for denoiser in pipe.parts.denoisers:
            model = pipe.component(denoiser.name)
            offload_blocks(
                model, len(repeated_blocks(model)) if waiting.blocks is None else waiting.blocks, pipe.device
            )
    pipe.placement = Placement(apart=True)
