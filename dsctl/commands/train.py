"""`dsctl train`."""

from __future__ import annotations

from dsctl import launch, out
from dsctl.confirm_trust import confirm_trust
from dsctl.flags import takes
from dsctl_core.gc_pause import paused_gc
from dsctl_core.options import TrainOptions
from dsctl_core.readable import readable_bytes

EXAMPLE = """\
dsctl train --model tiny --dataset-base-path photos --lora-rank 16 \\
    --max-steps 1500 --output-path runs/photos"""
MOST_USED = (
    *("model", "dataset_base_path", "output_path", "lora_rank", "max_steps", "learning_rate", "batch_size"),
    *("bucket_resolutions", "use_gradient_checkpointing", "sample_every", "save_steps", "dry_run"),
)


@takes(TrainOptions, config=True, example=EXAMPLE, most_used=MOST_USED)
def train(options: TrainOptions) -> None:
    """Train a model, or a LoRA on it."""
    templates = options.templates
    confirm_trust([] if templates.template is None else [templates.template], trusted=templates.trust_template)
    if options.memory.dry_run:
        show_dry_run(options)
        return
    if launch.in_processes(options.processes, cpu=options.training.device == "cpu"):
        return
    if options.first_stage:
        cache_alone(options)
        return
    with paused_gc():
        from dsctl_core.commands.train import train

    result = train(options, progress=out.progress())
    if not result.is_main_process:
        return
    out.result(
        "Trained",
        labels={"final_loss": "loss of the last step", "skipped_rows": "skipped rows" if result.skipped else ""},
        checkpoint=result.checkpoint,
        steps=result.steps,
        final_loss=result.final_loss,
        seconds=round(result.seconds, 1),
        output_path=result.output_path,
        **({} if result.mirror is None else {"mirror": result.mirror}),
        skipped_rows=result.skipped,
    )


def cache_alone(options: TrainOptions) -> None:
    """Do the first stage alone, and show what it has done."""
    from dsctl.commands.cache import show_cache

    with paused_gc():
        from dsctl_core.commands.cache import make_cache

    show_cache(make_cache(options, progress=out.progress()), options.flat_values("json")["output_path"])


def show_dry_run(options: TrainOptions) -> None:
    """Show what the run would take, in bytes as JSON and else in what is easily read."""
    from dsctl.commands.cache import traffic_lines

    with paused_gc():
        from dsctl_core.commands.train import dry_run

    found = dry_run(options, progress=out.progress())
    facts = found.facts()
    lines = ["Dry run: nothing was loaded, written or trained", f"  steps  {facts['steps']}"]
    for part, spell in (("parameters", _numbers), ("memory", readable_bytes), ("disk", readable_bytes)):
        lines += ["", part]
        lines += out.columns([(name.replace("_", " "), spell(value)) for name, value in facts[part].items()], indent=2)
    out.show(facts, [*lines, *traffic_lines(facts["traffic"]), "", *found.verdict])


def _numbers(value: int) -> str:
    return f"{value:,}"
