"""Shard the model between processes (FSDP2, DeepSpeed ZeRO), and gather full tensors again.

Every function here must be called by all processes together, because each holds only its own shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from dsctl_core.errors import UsageError
from dsctl_core.training.distributed.accelerator import launched_with

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer

    from dsctl_core.training.model.module import DiffusionTrainingModule


def shard(accelerator: Accelerator, module: DiffusionTrainingModule) -> None:
    """Shard the parts of `module` that run at each step, if the processes were started for FSDP2; else do nothing.

    The denoiser and trained components are sharded, with each repeated block as a unit of its own, gathered only while
    it runs. Frozen encoders are not sharded. Parameters keep their dtypes and gradients are reduced in float32, so that
    the results equal those of one process. Call it before building the optimizer: it replaces the parameters.
    Based on FSDP2 (arXiv:2411.00284). accelerate's own wrapping shards everything, and works on GPUs alone.
    """
    if not launched_with("FSDP") or accelerator.num_processes == 1:
        return
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if FullyShardedDataParallelPlugin().fsdp_version != 2:
        raise UsageError(
            "FSDP version 1 cannot hold frozen and trained weights of two precisions",
            hint="write `fsdp_version: 2` in accelerate's configuration, as examples/accelerate/fsdp2.yaml does",
        )
    plugin = FullyShardedDataParallelPlugin()
    settings: dict[str, Any] = {
        "mesh": init_device_mesh(accelerator.device.type, (accelerator.num_processes,)),
        "reshard_after_forward": plugin.reshard_after_forward,
        "offload_policy": plugin.cpu_offload,
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False),
    }
    pipe = module.pipe
    trained, denoisers = [each.name for each in module.trained], _trained_denoisers(module)
    if len(denoisers) > 1:
        raise UsageError(
            f"FSDP2 cannot train {' and '.join(denoisers)} in one run: each process would run another of them",
            hint="train them one by one",
        )
    for name in dict.fromkeys([*pipe.iteration_modules(), *trained]):
        component = pipe.component(name)
        _refuse_small_floats(name, component)
        units = set(component._no_split_modules or ())
        for block in [each for each in component.modules() if type(each).__name__ in units]:
            fully_shard(block, **settings)
        fully_shard(component, **settings)


def _refuse_small_floats(name: str, component: nn.Module) -> None:
    if any(parameter.dtype.itemsize == 1 for parameter in component.parameters()):
        raise UsageError(
            f"{name} is held in 4 or 8 bits, which FSDP2 cannot divide",
            hint="leave it out of --fp8-models and --quantize: it is divided",
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
    accelerator: Accelerator, module: nn.Module, optimizer: Optimizer, batch_size: int, max_grad_norm: float
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

        module.forward = in_precision
        return module, accelerator.prepare_optimizer(optimizer)
    if accelerator.distributed_type == "DEEPSPEED":
        # The engine has no data loader to read the batch size from, and clips gradients itself.
        settings = accelerator.deepspeed_plugin.deepspeed_config
        settings["train_micro_batch_size_per_gpu"], settings["gradient_clipping"] = batch_size, max_grad_norm
    if accelerator.ddp_handler is not None and len(_trained_denoisers(module)) > 1:
        accelerator.ddp_handler.find_unused_parameters = True  # a micro-batch runs one of them, in each process its own
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


def whole_state(state: Any, *, keep: bool = True) -> Any:
    """Return nested dicts, lists and tuples, such as an optimizer's state, with sharded tensors gathered on the CPU.

    Full tensors and all other values stay as they are. With `keep` false, each gathered tensor is replaced by None, for
    processes that do not write it: they need no memory for it.
    """
    if isinstance(state, DTensor):
        full = state.full_tensor()
        return full.cpu() if keep else None
    if isinstance(state, dict):
        return {key: whole_state(value, keep=keep) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole_state(value, keep=keep) for value in state)
    return state


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return the full `tensor`, which every process has, on the device of `other` and sharded like `other`."""
    if not isinstance(other, DTensor):
        return tensor.to(other.device)
    placed = tensor.to(other.device_mesh.device_type)
    return distribute_tensor(placed, other.device_mesh, other.placements, src_data_rank=None).to(other.device)


def divided_state(state: Mapping[int, Mapping[str, Any]], parameters: Sequence[Tensor]) -> dict[int, dict[str, Any]]:
    """Return the "state" of a gathered `optimizer.state_dict()` (see `whole_state`), sharded like `parameters`.

    The number of processes may differ from the one at saving. The result can be loaded into the optimizer of
    `parameters`.
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
