"""One run of `dsctl cache`, from the options to the result."""

from __future__ import annotations

from dsctl_core.cache.folder import require_cache_or_nothing
from dsctl_core.options import CacheOptions, TrainOptions
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.stages.encode import CacheResult
from dsctl_core.training.plan.encode import plan_encoding


def make_cache(options: CacheOptions | TrainOptions, progress: Progress | None = None) -> CacheResult:
    """Do the first stage as `options` say, in the folder of the cache; see dsctl_core.stages.encode.

    Raises DsctlError for anything that cannot be used.
    """
    folder = options.output.output_path if isinstance(options, TrainOptions) else options.output_path
    require_cache_or_nothing(folder)
    plan = plan_encoding(options)
    alone = progress if progress is not None and plan.accelerator.is_main_process else NoProgress()
    try:
        for note in plan.notes():
            alone.note(note)
        return plan.fill(folder, alone)
    finally:
        plan.accelerator.end_training()
