"""One run of `dsctl cache`, from the options to the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dsctl_core.cache.open_output import open_output
from dsctl_core.options import CacheOptions, TrainOptions
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.remote.local import limit_disk
from dsctl_core.stages.encode import CacheResult, deadline_after
from dsctl_core.training.plan.encode import plan_encoding

if TYPE_CHECKING:
    from dsctl_core.training.dry_run.encode_estimate import EncodeDryRun


def make_cache(options: CacheOptions | TrainOptions, progress: Progress | None = None) -> CacheResult:
    """Do the first stage as `options` say, in the folder of the cache; see dsctl_core.stages.encode.

    Raises DsctlError for anything that cannot be used.
    """
    if isinstance(options, TrainOptions):
        folder, hours, shared = options.output.output_path, options.training.max_hours, False
    else:
        folder, hours, shared = options.output_path, options.max_hours, options.shared
    deadline = deadline_after(hours)
    limit_disk(options.data.remote_cache_gb)
    _require_usable(folder, shared=shared)
    plan = plan_encoding(options)
    alone = progress if progress is not None and plan.accelerator.is_main_process else NoProgress()
    try:
        for note in plan.notes():
            alone.note(note)
        return plan.fill(folder, alone, deadline)
    finally:
        plan.accelerator.end_training()


def dry_run(options: CacheOptions) -> EncodeDryRun:
    """Find out what making the cache would take of memory and disk. Nothing is written, downloaded or encoded.

    Raises DsctlError for whatever would be refused before weights are loaded.
    """
    from dsctl_core.training.dry_run.encode_estimate import estimate_encoding

    _require_usable(options.output_path, shared=options.shared)
    plan = plan_encoding(options, offline=True)
    try:
        return estimate_encoding(plan, options.output_path, options.dry_run_nodes or 1)
    finally:
        plan.accelerator.end_training()


def _require_usable(folder: Path, *, shared: bool) -> None:
    output = open_output(folder)
    output.require_ours()
    if shared:
        output.require_sharing()
