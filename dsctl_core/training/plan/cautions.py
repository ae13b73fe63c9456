"""Warn of a run that can be meant and mostly is not: each warning names the option and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import TYPE_CHECKING

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.options.optimizer import OPTIMIZERS, OptimizerOptions
from dsctl_core.readable import counted, readable_bytes
from dsctl_core.remote.address import is_remote
from dsctl_core.remote.local import disk_limit

if TYPE_CHECKING:
    from dsctl_core.training.plan.plan import TrainingPlan

# AdamW moves every weight by about the rate at each step; published rates are 1e-6 to 1e-2.
HIGHEST_RATE = 0.1
LOWEST_FACTOR = 0.01  # of optimizers that find the rate themselves, and multiply it with --learning-rate


def cautions(plan: TrainingPlan, dataset: Sized) -> Iterator[str]:
    """Yield the warnings of a run on `dataset`, the samples of an epoch."""
    preset, adapter = plan.model.preset, plan.options.adapter
    # A LoRA that is trained on top of one that undoes the distillation does not fight the few steps of the weights.
    undone = adapter.preset_lora_path is not None and adapter.wants_lora
    if preset is not None and preset.base_preset is not None and not undone:
        yield (
            f"{preset.name} is distilled, and training on it gives poor pictures; "
            f"train on {preset.base_preset} instead, and use the LoRA on either, or train a LoRA on top of one that "
            "undoes the distillation (--preset-lora-path)"
        )
    rate = unusual_rate(plan.options.optim, plan.optimizer.arguments["lr"])
    if rate is not None:
        yield rate
    step = small_epoch(plan, len(dataset))
    if step is not None:
        yield step
    if isinstance(plan.source, CachedDataset) and is_remote(plan.source.folder):
        needed, limit = plan.source.manifest.bytes["shards"], disk_limit()
        if needed > limit:
            yield (
                f"the cache has {readable_bytes(needed)}, and its local copies may take {readable_bytes(limit)}: "
                "shards are fetched several times in an epoch; give a larger --remote-cache-gb"
            )


def unusual_rate(options: OptimizerOptions, rate: float) -> str | None:
    """Return a warning for a learning rate that is usual with another optimizer."""
    known = OPTIMIZERS.get(options.optimizer)
    if known is not None and known.rate_scale is not None and rate >= HIGHEST_RATE * known.rate_scale:
        usual = 1e-4 * known.rate_scale
        return (
            f"--learning-rate {rate:g} is {rate / usual:,.0f} times the {usual:g} that is usual with "
            f"{options.optimizer}, and will mostly train to noise; about 1 is for --optimizer prodigy"
        )
    if known is not None and known.rate is not None and rate < LOWEST_FACTOR * known.rate:
        return (
            f"--learning-rate {rate:g} multiplies the rate that {options.optimizer} finds, and will train next to "
            f"nothing; leave it out, or give {known.rate:g}"
        )
    return None


def small_epoch(plan: TrainingPlan, samples: int) -> str | None:
    """Return a warning for an epoch with fewer samples than a step takes: a step ends with its epoch."""
    training, processes = plan.options.training, plan.accelerator.num_processes
    step = training.batch_size * training.gradient_accumulation_steps * processes
    if samples >= step:
        return None
    factors = [f"--batch-size {training.batch_size}"]
    if training.gradient_accumulation_steps > 1:
        factors.append(f"--gradient-accumulation-steps {training.gradient_accumulation_steps}")
    factors += [f"{processes} processes"] if processes > 1 else []
    repeat = -(-step * plan.options.data.dataset_repeat // samples)
    return (
        f"{' x '.join(factors)} is more than the {counted(samples, 'sample')} of an epoch, so a step has {samples}; "
        f"give --dataset-repeat {repeat} for full steps"
    )
