"""`dsctl template init`, `check`, `pack` and `upload`."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict

from dsctl import out
from dsctl.commands.upload import show_upload
from dsctl.confirm_trust import confirm_trust
from dsctl.flags import takes
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
    from dsctl_core.template.skeleton import init

    started = init(options)
    check = ["dsctl", "template", "check", str(started.folder), "--trust-template"]
    check += [*(["--model", options.model] if options.given("model") else [])]
    check += ["--template-inputs", json.dumps(started.example)]
    out.result("Written", **{**asdict(started), "blocks": list(started.blocks)}, check_it=shlex.join(check))


@takes(TemplateCheckOptions)
def check(options: TemplateCheckOptions) -> None:
    """Run a template once, and say what it takes and returns."""
    from dsctl_core.template.check import check

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
    from dsctl_core.template.pack import pack

    confirm_trust([TemplateSource(str(options.folder))], trusted=options.trust_template)
    out.result("Packed", **asdict(pack(options)))


@takes(TemplateUploadOptions)
def upload(options: TemplateUploadOptions) -> None:
    """Check a packed template, and put it on a hub, where it is compared again."""
    from dsctl_core.commands.template_upload import upload

    confirm_trust([TemplateSource(str(options.path))], trusted=options.trust_template)
    show_upload(upload(options, progress=out.transfers()))
