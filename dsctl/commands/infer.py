"""`dsctl infer`."""

from __future__ import annotations

from dsctl import out
from dsctl.confirm_trust import confirm_trust
from dsctl.flags import takes
from dsctl_core.gc_pause import paused_gc
from dsctl_core.options import InferOptions
from dsctl_core.readable import counted

EXAMPLE = """\
dsctl infer --model tiny --lora runs/photos/step-1500.safetensors \\
    --prompt "a dog on the beach" --output dog.png"""
MOST_USED = (
    *("model", "lora", "prompt", "negative_prompt", "output", "num_images", "height", "width"),
    *("num_inference_steps", "cfg_scale", "seed", "input_image"),
)


@takes(InferOptions, config=True, example=EXAMPLE, most_used=MOST_USED)
def infer(options: InferOptions) -> None:
    """Make pictures or clips."""
    with paused_gc():
        from dsctl_core.commands.infer import infer

    confirm_trust(options.templates.template, trusted=options.templates.trust_template)
    result = infer(options, progress=out.progress())
    what = "clip" if result.clips else "picture"
    title = f"Made {counted(len(result.files), what)}"
    out.result(title, files=result.files, grid=result.grid, seconds=round(result.seconds, 1))
