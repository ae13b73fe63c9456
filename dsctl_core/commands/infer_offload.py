"""Where the components of a pipeline are while `dsctl infer` draws: all on the GPU, or each while it is needed."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Literal

from dsctl_core.errors import UsageError
from dsctl_core.options.infer import InferOptions
from dsctl_core.options.quantize import quantized_pairs, require_library

if TYPE_CHECKING:
    import torch

    from dsctl_core.families.resolve import ResolvedModel
    from dsctl_core.pipeline import BasePipeline

# Bytes of a weight in the formats of --quantize, with their scales.
PACKED = {"int8": 1.0, "float8": 1.0, "nf4": 0.57}
# What must stay free beside the weights: for activations at the usual sizes, the context and fragments.
RESERVE, RESERVED_SHARE = 3 * 2**30, 0.08

Place = Literal["none", "components", "blocks"]


def choose_offload(
    options: InferOptions, resolved: ResolvedModel, device: torch.device, dtype: torch.dtype
) -> tuple[Place, str | None]:
    """Return what waits in main memory, and a line that says so where it was chosen from the memory that is free.

    Raises UsageError for --offload on a CPU, where it has no effect.
    """
    import torch

    if device.type == "cpu":
        if options.offload != "auto":
            raise UsageError(
                f"--offload {options.offload} has no effect on a CPU: the weights are in main memory anyway",
                hint="leave it out",
            )
        return "none", None
    if device.type == "mps":  # its memory is the main memory
        return "none", None
    denoisers = [each.name for each in resolved.parts.denoisers]
    if options.offload != "auto":
        return options.offload, None
    free, total = torch.cuda.mem_get_info(device)
    place = fitting(component_bytes(options, resolved, dtype), denoisers, free, total)
    if place == "none":
        return place, None
    what = "components wait" if place == "components" else "components, and the blocks of the denoiser, wait"
    return (
        place,
        f"not all fits into the {free / 2**30:.0f} GiB that are free: {what} in main memory (--offload {place})",
    )


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
    from dsctl_core.checkpoint.quantized import is_nf4_folder
    from dsctl_core.checkpoint.stream import tensor_shapes

    formats = dict(quantized_pairs(options.quantize))
    places = find_component_paths(resolved.family, resolved.configs_of(None), resolved.reader_configs)
    found = {}
    for name, folder in places.components.items():
        if is_nf4_folder(folder):  # as it is held
            found[name] = sum(file.stat().st_size for file in weight_files(folder))
            continue
        numbers = sum(prod(shape) for file in weight_files(folder) for shape in tensor_shapes(file).values())
        found[name] = int(numbers * PACKED.get(formats.get(name, ""), dtype.itemsize))
    return found


def refuse_for_stored(options: InferOptions, resolved: ResolvedModel) -> None:
    """Raise UsageError for components that their files hold in few bits, and that are to be packed or replaced in part.

    Raises DsctlError without the library that makes them whole.
    """
    from dsctl_core.checkpoint.nf4 import stored_formats

    packed = {name for name, _ in quantized_pairs(options.quantize)}
    stored = stored_formats(resolved.family, resolved.configs_of(None))
    for name, form in stored.items():
        require_library(form)
        flag = "--quantize" if name in packed else "--trained-part" if options.trained_part else None
        if flag is not None:
            raise UsageError(
                f"the {name} is held in {form} by its files, and {flag} needs it whole",
                hint=f"leave {flag} out, or give its weights in bf16",
            )


def place(pipe: BasePipeline, offload: Place) -> None:
    """Leave what `offload` says in main memory until it runs, and move the rest to the device of `pipe`."""
    from dsctl_core.memory.blocks import repeated_blocks
    from dsctl_core.memory.offload import offload_blocks
    from dsctl_core.placement import Placement

    if offload == "none":
        waiting = {each.name for each in pipe.parts.denoisers[1:]}
        pipe.load_models_to_device([name for name in pipe.components if name not in waiting])
        return
    if offload == "blocks":
        for denoiser in pipe.parts.denoisers:
            model = pipe.component(denoiser.name)
            offload_blocks(model, len(repeated_blocks(model)), pipe.device)
    pipe.placement = Placement(apart=True)
