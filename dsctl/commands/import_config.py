"""`dsctl import`."""

from __future__ import annotations

from dsctl import out
from dsctl.flags import takes
from dsctl_core.options.first_steps import ImportOptions


@takes(ImportOptions)
def import_config(options: ImportOptions) -> None:
    """Turn another tool's config into a run.toml."""
    from dsctl_core.commands.import_config import import_config

    result = import_config(options)
    out.show(result.facts(), result.lines())
