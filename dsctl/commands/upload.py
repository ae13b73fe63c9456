"""`dsctl upload`."""

from __future__ import annotations

from typing import Any

from dsctl import out
from dsctl.flags import takes
from dsctl_core.options.hub import UploadOptions


@takes(UploadOptions)
def upload(options: UploadOptions) -> None:
    """Put a trained file or folder on a hub, and check that it arrived."""
    from dsctl_core.commands.upload import upload

    show_upload(upload(options, progress=out.transfers()))


def show_upload(facts: dict[str, Any]) -> None:
    """Show what an upload did, and how to try what is there now."""
    title = "Uploaded" if facts["uploaded"] else "Would be uploaded"
    plain = {name: value for name, value in facts.items() if name not in ("try_it", "uploaded")}
    rows = [(name, ", ".join(value) if isinstance(value, list) else str(value)) for name, value in plain.items()]
    out.show(facts, [title, *out.columns(rows, indent=2), "to try it:", *(f"  {line}" for line in facts["try_it"])])
