"""Build the training module of a plan, with its weights loaded or on an existing pipeline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributed.fsdp import FSDPModule

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.errors import UsageError
from dsctl_core.family import Family
from dsctl_core.memory.options import MemorySettings
from dsctl_core.pipeline import BasePipeline
from dsctl_core.progress import Progress
from dsctl_core.training.distributed.fsdp import divides, shard
from dsctl_core.training.model.stored import stored_dtypes, trained_dtypes
from dsctl_core.training.model.task_module import TaskModule, objective_of
from dsctl_core.training.plan.plan import TrainingPlan


def build_module(plan: TrainingPlan, progress: Progress) -> TaskModule:
    """Load the pipeline (frozen weights in the run's precision, trained ones in float32) and make it trainable.

    Only the components in the plan are loaded. Edits of a component that is not loaded were applied in the first stage.
    """
    progress.note(f"Loading {plan.model.label}")
    memory, device = plan.options.memory, plan.accelerator.device
    whole = [name.split(".")[0] for name in plan.options.training.trainable_models or ()]
    # Offloaded blocks are loaded into main memory: the whole model may not fit into the GPU.
    place = torch.device("cpu") if memory.offload_blocks else device
    parts = divided_components(plan)
    pipe = plan.model.load_pipeline(
        torch_dtype=plan.dtype,
        device=place,
        only=plan.components,
        component_dtypes=trained_dtypes(plan.model, whole, plan.dtype) | _mapped_dtypes(plan, parts),
        on_host=plan.use.edits.packed,
        in_parts=parts,
    )
    module = task_module(plan, pipe, packed_on=device, divided=parts)
    if memory.offload_blocks and device.type == "cpu":
        raise UsageError("--offload-blocks has no effect without a GPU", hint="leave it out")
    change_for_compiler(pipe, plan.model.family, device, compiled=memory.compile)
    settings = MemorySettings(
        memory.gradient_checkpointing_blocks,
        memory.offload_blocks,
        memory.compile,
        memory.attention_backend,
        memory.float8,
    )
    settings.apply(list(pipe.iteration_modules().values()), device, pipe.denoiser_modules(), divided=bool(parts))
    if parts:
        shard(plan.accelerator, module, plan.dtype)
    for model in pipe.components.values():
        if not isinstance(model, FSDPModule):  # its parts are where FSDP2 wants them
            model.to(device)
    pipe.device = torch.empty(0, device=device).device
    module.static_graph = has_static_graph(plan, device)
    return module


def change_for_compiler(pipe: BasePipeline, family: Family, device: torch.device, *, compiled: bool) -> None:
    """Change the denoisers of `pipe` so that blocks which are `compiled` for a GPU are so as a whole."""
    if compiled and device.type == "cuda" and family.for_compiler is not None:
        for denoiser in pipe.denoiser_modules():
            family.for_compiler(denoiser)


def has_static_graph(plan: TrainingPlan, device: torch.device) -> bool:
    """Return whether DDP can take it that every step computes with the same trained weights; on a GPU alone.

    This is known of one denoiser whose rows all have the same inputs. An encoder may get a picture in one row and none
    in another, and what a template does is not known. Compiled blocks split their graphs by DDP's buckets, which a
    static graph does not allow.
    """
    options, source = plan.options, plan.source
    if options.training.find_unused_parameters is not None or device.type != "cuda" or options.memory.compile:
        return False
    names, denoisers = options.trained_components, [each.name for each in plan.model.parts.denoisers]
    inputs = source.manifest.recipe.extra_inputs if isinstance(source, CachedDataset) else options.data.extra_inputs
    varying = set(inputs) & set(plan.model.family.optional_inputs)
    return len(names) == 1 and names[0] in denoisers and not plan.model.side_networks and not varying


def divided_components(plan: TrainingPlan) -> tuple[str, ...]:
    """Return the components that FSDP2 divides between the processes: what is trained, and the denoisers."""
    if not divides(plan.accelerator):
        return ()
    denoisers = [each.name for each in plan.model.parts.denoisers if each.name not in plan.stages.idle]
    return tuple(dict.fromkeys([*denoisers, *plan.options.trained_components]))


def _mapped_dtypes(plan: TrainingPlan, names: Sequence[str]) -> dict[str, torch.dtype]:
    """Return the dtypes in which the components `names` are mapped from their files instead of read.

    Where weights are computed from those of the model, by LoRAs that are merged into it or by a DoRA, this is done in
    the precision of the run.
    """
    adapter = plan.options.adapter
    computed = adapter.lora or plan.use.edits.lora is not None or adapter.use_dora or adapter.network == "dora"
    return {} if computed else stored_dtypes(plan.model, names)


def task_module(
    plan: TrainingPlan,
    pipe: BasePipeline,
    *,
    read_loras: bool = True,
    packed_on: torch.device | None = None,
    divided: Sequence[str] = (),
) -> TaskModule:
    """Build the training module of the plan on `pipe`. Without `read_loras` no LoRA file is read or merged.

    Components in fewer bits are packed onto the device `packed_on` (None: that of `pipe`). The components `divided` are
    divided between the processes afterwards.
    """
    training, adapter, edits = plan.options.training, plan.options.adapter, plan.use.edits
    return TaskModule(
        pipe,
        plan.task,
        extra_inputs=plan.options.data.extra_inputs,
        use_gradient_checkpointing=training.use_gradient_checkpointing,
        use_gradient_checkpointing_offload=training.use_gradient_checkpointing_offload,
        objective=objective_of(plan.options.objective),
        tables=plan.source.tables,
        trainable_models=training.trainable_models,
        lora_base_model=adapter.lora_components or None,
        lora_target_modules=adapter.lora_target_modules,
        network=adapter.network or "lora",
        lora_rank=adapter.lora_rank or 32,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        use_dora=adapter.use_dora,
        use_rslora=adapter.use_rslora,
        lokr_factor=adapter.lokr_factor,
        lokr_decompose_both=adapter.lokr_decompose_both,
        lokr_full_matrix=adapter.lokr_full_matrix,
        lora_checkpoint=adapter.lora_checkpoint if read_loras else None,
        preset_lora_path=edits.lora if read_loras and edits.lora_on in pipe.components else None,
        preset_lora_model=edits.lora_on,
        loras=[(lora.path, lora.scale) for lora in adapter.lora] if read_loras else [],
        fp8_models=[name for name in edits.fp8 if name in pipe.components],
        quantized={name: form for name, form in edits.quantized if name in pipe.components},
        packed_on=packed_on,
        seed=training.seed,
        divided=divided,
    )
