"""`dsctl train`."""

from __future__ import annotations

from dsctl import launch, out
from dsctl.flags import takes
from dsctl.trusting import ask_for_trust
from dsctl_core.options import TrainOptions


@takes(TrainOptions, config=True)
def train(options: TrainOptions) -> None:
    """Train a model, or a LoRA on it."""
    ask_for_trust([] if options.template is None else [options.template], trusted=options.trust_template)
    if launch.in_processes(options, cpu=options.device == "cpu"):
        return
    from dsctl_core.training import make_cache, train

    if options.first_stage:
        from dsctl.commands.cache import show_cache

        show_cache(make_cache(options, progress=out.progress()), options.output_path)
        return

    result = train(options, progress=out.progress())
    if not result.is_main_process:
        return
    out.result(
        "Trained",
        checkpoint=result.checkpoint,
        steps=result.steps,
        final_loss=result.final_loss,
        seconds=round(result.seconds, 1),
        output_path=result.output_path,
        skipped_rows=result.skipped,
    )
