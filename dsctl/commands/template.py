"""`dsctl template init`, `check`, `pack` and `upload`."""

from __future__ import annotations

from dataclasses import asdict

from dsctl import out
from dsctl.commands.upload import show_upload
from dsctl.confirm_trust import confirm_trust
from dsctl.flags import takes
from dsctl_core.gc_pause import paused_gc
from dsctl_core.options.template import TemplateSource
from dsctl_core.options.template_tools import (
    TemplateCheckOptions,
    TemplateInitOptions,
    TemplatePackOptions,
    TemplateUploadOptions,
)


@takes(TemplateInitOptions)
def init(options: TemplateInitOptions) -> None:
    """Write a template that works, to start your own from."""
    with paused_gc():
        from dsctl_core.commands.template import init

    out.result("Written", **init(options))


@takes(TemplateCheckOptions)
def check(options: TemplateCheckOptions) -> None:
    """Run a template once, and say what it takes and returns."""
    with paused_gc():
        from dsctl_core.commands.template import check

    confirm_trust([options.template], trusted=options.trust_template)
    facts = check(options)
    lines = []
    for name, value in facts.items():
        lines += _lines(name.replace("_", " "), value)
    out.show(facts, lines)


def _lines(name: str, value: object) -> list[str]:
    if isinstance(value, dict):
        rows = [(str(key), str(each)) for key, each in value.items()]
        return [name, *(out.columns(rows, indent=2) if rows else ["  none"])]
    if isinstance(value, list):
        value = ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        value = "yes" if value else "no"
    return [f"{name}: {'none' if value is None else value}"]


@takes(TemplatePackOptions)
def pack(options: TemplatePackOptions) -> None:
    """Put a template and its trained weights into one folder, ready to be given away."""
    with paused_gc():
        from dsctl_core.commands.template import pack

    confirm_trust([TemplateSource(str(options.folder))], trusted=options.trust_template)
    out.result("Packed", **asdict(pack(options)))


@takes(TemplateUploadOptions)
def upload(options: TemplateUploadOptions) -> None:
    """Check a packed template, and put it on a hub, where it is compared again."""
    with paused_gc():
        from dsctl_core.commands.template import upload

    confirm_trust([TemplateSource(str(options.path))], trusted=options.trust_template)
    show_upload(upload(options, progress=out.transfers()))
