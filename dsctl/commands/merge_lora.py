"""`dsctl merge-lora`."""

from __future__ import annotations

from dsctl import out
from dsctl.flags import takes
from dsctl_core.gc_pause import paused_gc
from dsctl_core.options.lora_tools import MergeLoraOptions


@takes(MergeLoraOptions)
def merge_lora(options: MergeLoraOptions) -> None:
    """Merge LoRAs into a model, or into one LoRA."""
    with paused_gc():
        from dsctl_core.commands.merge_lora import merge

    written = merge(options, progress=out.progress())
    out.result("Merged", output=written.output, **written.facts)
