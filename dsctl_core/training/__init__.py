"""Training: the module, the tasks, the loop, and what a run leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsctl_core.gc_pause import paused_gc
from dsctl_core.progress import NoProgress, Progress

if TYPE_CHECKING:
    from dsctl_core.commands.train import TrainResult
    from dsctl_core.options import CacheOptions, TrainOptions
    from dsctl_core.stages.encode import CacheResult
    from dsctl_core.training.dry_run.estimate import DryRun


def train(options: TrainOptions, progress: Progress | None = None) -> TrainResult:
    """Train as `options` say; see dsctl_core.commands.train. The heavy libraries are imported by the call."""
    with paused_gc():
        from dsctl_core.commands.train import run_training

    return run_training(options, progress or NoProgress())


def rehearse(options: TrainOptions, progress: Progress | None = None) -> DryRun:
    """Find out what a run would take; see dsctl_core.training.dry_run.estimate."""
    with paused_gc():
        from dsctl_core.training.dry_run.estimate import dry_run

    return dry_run(options, progress or NoProgress())


def make_cache(options: CacheOptions | TrainOptions, progress: Progress | None = None) -> CacheResult:
    """Do the first stage of training as `options` say; see dsctl_core.training.plan.caching."""
    with paused_gc():
        from dsctl_core.training.plan import caching

    return caching.make_cache(options, progress or NoProgress())
