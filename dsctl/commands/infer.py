"""`dsctl infer`."""

from __future__ import annotations

from dsctl import out
from dsctl.confirm_trust import confirm_trust
from dsctl.flags import takes
from dsctl_core.gc_pause import paused_gc
from dsctl_core.options import InferOptions


@takes(InferOptions, config=True)
def infer(options: InferOptions) -> None:
    """Make pictures or clips."""
    with paused_gc():
        from dsctl_core.commands.infer import infer

    confirm_trust(options.templates.template, trusted=options.templates.trust_template)
    result = infer(options, progress=out.progress())
    what = "clip" if result.clips else "picture"
    title = f"Made 1 {what}" if len(result.files) == 1 else f"Made {len(result.files)} {what}s"
    out.result(title, files=result.files, grid=result.grid, seconds=round(result.seconds, 1))
