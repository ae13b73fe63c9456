"""Shard the model between processes (FSDP2, DeepSpeed ZeRO), and gather full weights again.

Every function here must be called by all processes together, because each holds only its own shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from dsctl_core.checkpoint.finite import ANOTHER, find_not_finite
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.memory.dtypes import dtype_of, float32_parts
from dsctl_core.training.distributed.accelerator import launched_with

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.distributed.device_mesh import DeviceMesh
    from torch.optim import Optimizer

    from dsctl_core.training.model.module import DiffusionTrainingModule

COMPUTED_IN = {"bf16": torch.bfloat16, "fp16": torch.float16}


def divides(accelerator: Accelerator) -> bool:
    """Return whether the processes were started for FSDP2, and `shard` divides what is trained between them."""
    return launched_with("FSDP") and accelerator.num_processes > 1


def shard(accelerator: Accelerator, module: DiffusionTrainingModule, dtype: torch.dtype | None = None) -> None:
    """Shard the parts of `module` that run at each step, if the processes were started for FSDP2; else do nothing.

    The denoiser and trained components are sharded, with each repeated block as a unit of its own, gathered only while
    it runs. Frozen encoders are not sharded. Each process reads and moves its own part of each weight alone, so what is
    mapped from a file is nowhere whole. Weights are gathered in the precision of training, bfloat16 or float16, while
    their shards keep their dtype, and gradients are summed in float32. Call it before building the optimizer: it
    replaces the parameters. What is sharded already stays as it is. Based on FSDP2 (arXiv:2411.00284). accelerate's own
    wrapping shards everything, and works on GPUs alone.

    Args:
        accelerator: the accelerator of the run.
        module: the module, on any device.
        dtype: the dtype of the shards of frozen weights, but for the parts that stay in float32; those of trained ones
            are then float32, and the values are checked (None: shards have the dtypes of the weights).
    """
    if not divides(accelerator) or divided(module):
        return
    for side in module.pipe.side_networks:
        if side.borrows:
            raise UsageError(
                f"FSDP2 cannot divide {side.name}, which runs layers of the denoiser as its own",
                hint="train it with the whole model on each GPU: --num-processes N without FSDP",
            )
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.device_mesh import init_device_mesh

    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise UsageError(
            "FSDP version 1 cannot hold frozen and trained weights of two precisions",
            hint="write `fsdp_version: 2` in accelerate's configuration, as examples/accelerate/fsdp2.yaml does",
        )
    device = accelerator.device
    settings: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (accelerator.num_processes,)),
        "reshard_after_forward": plugin.reshard_after_forward,
        "offload_policy": plugin.cpu_offload,
    }
    kept_on = torch.device("cpu") if isinstance(plugin.cpu_offload, CPUOffloadPolicy) else device
    pipe = module.pipe
    trained, denoisers = [each.name for each in module.trained], _trained_denoisers(module)
    if len(denoisers) > 1:
        raise UsageError(
            f"FSDP2 cannot train {' and '.join(denoisers)} in one run: each process would run another of them",
            hint="train them one by one",
        )
    computed_in = COMPUTED_IN.get(accelerator.mixed_precision)
    for name in dict.fromkeys([*pipe.iteration_modules(), *trained]):
        component = pipe.component(name)
        _refuse_small_floats(name, component)
        exact = _exact_parameters(component, device, computed_in) if computed_in is not None else set()
        sources = _emptied(component, exact, dtype)
        _divide(component, computed_in, {**settings, "ignored_params": exact})
        _fill(name, component, sources, kept_on, check=dtype is not None)


def _divide(component: Any, dtype: torch.dtype | None, settings: dict[str, Any]) -> None:
    """Shard `component`, to compute in `dtype` (None: in the dtypes of its weights), parts in float32 excepted."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    exactly = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    usual = replace(exactly, param_dtype=dtype)
    for part in _float32_modules(component, dtype) if dtype is not None else ():
        fully_shard(part, mp_policy=exactly, **settings)
    units = set(component._no_split_modules or ())
    for block in [each for each in component.modules() if type(each).__name__ in units]:
        fully_shard(block, mp_policy=usual, **settings)
    fully_shard(component, mp_policy=usual, **settings)


def _float32_modules(component: nn.Module, dtype: torch.dtype) -> list[nn.Module]:
    """Return the outermost modules of `component` that stay in float32 beside others in `dtype`."""
    parts, found, inside = float32_parts(component, dtype=dtype), list[nn.Module](), set[nn.Module]()
    for name, module in component.named_modules():
        if module not in inside and name.rpartition(".")[2] in parts and any(True for _ in module.parameters()):
            found.append(module)
            inside.update(module.modules())
    return found


def _exact_parameters(component: nn.Module, device: torch.device, dtype: torch.dtype) -> set[nn.Parameter]:
    """Return the frozen weights, beside those of modules, that stay in float32, moved to `device`.

    A unit of FSDP2 computes in one dtype, so that they are not divided: they are small, such as a table of six rows. A
    trained one is rounded where it is used, as all trained weights are.
    """
    parts, found = float32_parts(component, dtype=dtype), set[nn.Parameter]()
    within = {id(each) for module in _float32_modules(component, dtype) for each in module.parameters()}
    for name, parameter in component.named_parameters():
        if name.rpartition(".")[2] in parts and id(parameter) not in within and not parameter.requires_grad:
            parameter.data = parameter.data.to(device, torch.float32)
            found.add(parameter)
    return found


def _emptied(component: nn.Module, kept: set[nn.Parameter], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return the weights of `component` by name, but for `kept`, and leave in it parameters without memory.

    These have the dtypes that the shards are to have, see `shard`.
    """
    parts, sources = float32_parts(component, dtype=dtype), dict[str, Tensor]()
    made: dict[nn.Parameter, nn.Parameter] = {}  # a weight that two modules share stays one
    for prefix, owner in component.named_modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if parameter in kept:
                continue
            if parameter not in made:
                path = f"{prefix}.{name}" if prefix else name
                wanted = torch.float32 if parameter.requires_grad else dtype
                kind = dtype_of(path, parameter, wanted, parts) if dtype and wanted else parameter.dtype
                empty = torch.empty_like(parameter, dtype=kind, device="meta")
                made[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                sources[path] = parameter.detach()
            owner._parameters[name] = made[parameter]
    return sources


@torch.no_grad()
def _fill(name: str, component: nn.Module, sources: dict[str, Tensor], device: torch.device, *, check: bool) -> None:
    """Copy this process's part of each of `sources` to `device`, and forget them one by one.

    Raises a DsctlError, with `check`, for a value in it that is not finite.
    """
    component._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor)
    for path in list(sources):
        source, target = sources.pop(path), component.get_parameter(path)
        assert isinstance(target, DTensor)
        local, mesh = target.to_local(), target.device_mesh
        rows = -(-len(source) // mesh.size())  # as torch.chunk divides, which FSDP2 follows
        first = min(mesh.get_local_rank() * rows, len(source))
        local.copy_(source[first : first + len(local)])
        if check and find_not_finite([(path, local)]) is not None:
            raise DsctlError(f"{name}: {path} has a value that is no finite number", hint=ANOTHER)


def _refuse_small_floats(name: str, component: nn.Module) -> None:
    if any(parameter.dtype.itemsize == 1 for parameter in component.parameters()):
        raise UsageError(
            f"{name} is held in 4 or 8 bits, which FSDP2 cannot divide",
            hint="leave it out of --fp8-models and --quantize, or give whole weights: it is divided",
        )


def divided(module: nn.Module) -> list[FSDPModule]:
    """Return the outermost modules in `module` that FSDP2 has sharded."""
    inside: set[nn.Module] = set()
    found: list[FSDPModule] = []
    for each in module.modules():
        if isinstance(each, FSDPModule) and each not in inside:
            found.append(each)
            inside.update(each.modules())
    return found


def prepare(
    accelerator: Accelerator,
    module: DiffusionTrainingModule,
    optimizer: Optimizer,
    batch_size: int,
    max_grad_norm: float,
) -> tuple[nn.Module, Optimizer]:
    """Return `module` and `optimizer` wrapped by accelerate; a module that is sharded by `shard` only gets autocast."""
    if divided(module):
        from accelerate.utils import AutocastKwargs

        forward = module.forward
        # Autocast would keep a copy of each gathered weight in 16 bits until forward ends: the whole model.
        uncached = AutocastKwargs(cache_enabled=False)

        def in_precision(*args: Any, **kwargs: Any) -> Any:
            with accelerator.autocast(uncached):
                return forward(*args, **kwargs)

        module.forward = in_precision  # type: ignore[method-assign]
        return module, accelerator.prepare_optimizer(optimizer)
    if accelerator.distributed_type == "DEEPSPEED":
        # The engine has no data loader to read the batch size from, and clips gradients itself.
        settings = accelerator.deepspeed_plugin.deepspeed_config
        settings["train_micro_batch_size_per_gpu"], settings["gradient_clipping"] = batch_size, max_grad_norm
    handler = accelerator.ddp_handler
    if handler is not None and len(_trained_denoisers(module)) > 1:
        handler.find_unused_parameters = True  # a micro-batch runs one of them, in each process its own
    elif handler is not None and module.static_graph:
        handler.static_graph, handler.find_unused_parameters = True, False
    return accelerator.prepare(module, optimizer)


def _trained_denoisers(module: Any) -> list[str]:
    names = {denoiser.name for denoiser in module.pipe.parts.denoisers}
    return [each.name for each in module.trained if each.name in names]


@contextmanager
def keeping_gradients(accelerator: Accelerator, prepared: nn.Module) -> Iterator[None]:
    """Accumulate gradients in each process inside the context; they are reduced with those of a later batch."""
    roots = divided(prepared)
    if not roots:
        with accelerator.no_sync(prepared):
            yield
        return
    for root in roots:
        root.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        for root in roots:
            root.set_requires_gradient_sync(True)


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor of `tensor`, which may be sharded, on the same device."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def mesh_of(module: nn.Module) -> DeviceMesh | None:
    """Return the mesh of processes that the weights of `module` are sharded over, or None."""
    return next((each.device_mesh for each in module.parameters() if isinstance(each, DTensor)), None)


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return `tensor` on the device of `other` and sharded like `other`; every process has all of it, or its shard."""
    if isinstance(tensor, DTensor) or not isinstance(other, DTensor):
        return tensor.to(other.device)
    placed = tensor.to(other.device_mesh.device_type)
    return distribute_tensor(placed, other.device_mesh, other.placements, src_data_rank=None).to(other.device)


def divided_state(state: Mapping[int, Mapping[str, Any]], parameters: Sequence[Tensor]) -> dict[int, dict[str, Any]]:
    """Return the "state" of an `optimizer.state_dict()`, with full tensors sharded like `parameters`.

    The result can be loaded into the optimizer of `parameters`.
    """
    return {
        number: {
            key: like(value, parameters[number]) if _goes_with(value, parameters[number]) else value
            for key, value in values.items()
        }
        for number, values in state.items()
    }


def _goes_with(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and isinstance(parameter, DTensor) and value.shape == parameter.shape


@contextmanager
def whole_weights(accelerator: Accelerator, module: nn.Module) -> Iterator[None]:
    """Gather the trained weights of `module` in the main process inside the context, where they can be written.

    Nothing may be computed with `module` inside the context. Weights are gathered one at a time and kept on the CPU.
    """
    swapped: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for owner in module.modules():
            for name, parameter in list(owner.named_parameters(recurse=False)):
                if not parameter.requires_grad or not _in_pieces(accelerator, parameter):
                    continue
                full = _whole_weight(accelerator, parameter)
                if accelerator.is_main_process:
                    swapped.append((owner, name, parameter))
                    owner._parameters[name] = nn.Parameter(full.detach().cpu())
                del full
        yield
    finally:
        for owner, name, parameter in swapped:
            owner._parameters[name] = parameter


def _in_pieces(accelerator: Accelerator, parameter: nn.Parameter) -> bool:
    return isinstance(parameter, DTensor) or accelerator.distributed_type == "DEEPSPEED"


def _whole_weight(accelerator: Accelerator, parameter: nn.Parameter) -> Tensor:
    if accelerator.distributed_type == "DEEPSPEED":
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(parameter)
    return whole(parameter)


def gradient_norm(norm: Tensor | float | None) -> Tensor | None:
    """Return the gradient norm over all processes that clipping computed, or None if the engine gives none.

    It stays on its device: nothing waits for it.
    """
    return None if norm is None else whole(torch.as_tensor(norm))
