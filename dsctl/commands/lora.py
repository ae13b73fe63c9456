"""`dsctl lora info`, `convert`, `resize` and `extract`."""

from __future__ import annotations

from dsctl import out
from dsctl.flags import takes
from dsctl_core.gc_pause import paused_gc
from dsctl_core.options.lora_tools import LoraConvertOptions, LoraExtractOptions, LoraInfoOptions, LoraResizeOptions
from dsctl_core.readable import counted


@takes(LoraInfoOptions)
def info(options: LoraInfoOptions) -> None:
    """Show what a LoRA is: format, layers, ranks, metadata."""
    with paused_gc():
        from dsctl_core.commands.lora import info

    facts = info(options)
    plain = [(name.replace("_", " "), _shown(value)) for name, value in facts.items() if name != "metadata"]
    about = sorted(facts["metadata"].items())
    out.show(facts, [*out.columns(plain), "metadata", *(out.columns(about, indent=2) if about else ["  none"])])


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {counted(number, 'layer')}" for name, number in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


@takes(LoraConvertOptions)
def convert(options: LoraConvertOptions) -> None:
    """Write a LoRA in another format."""
    with paused_gc():
        from dsctl_core.commands.lora import convert

    written = convert(options)
    out.result("Converted", output=written.output, **written.facts)


@takes(LoraResizeOptions)
def resize(options: LoraResizeOptions) -> None:
    """Bring a LoRA to another rank."""
    with paused_gc():
        from dsctl_core.commands.lora import resize

    written = resize(options)
    out.result("Resized", output=written.output, **written.facts)


@takes(LoraExtractOptions)
def extract(options: LoraExtractOptions) -> None:
    """Make a LoRA of the difference between two checkpoints."""
    with paused_gc():
        from dsctl_core.commands.lora import extract_lora

    written = extract_lora(options, progress=out.progress())
    out.result("Extracted", output=written.output, **written.facts)
