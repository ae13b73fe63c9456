"""`dsctl import`: turn the config of another training tool into a run.toml. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsctl_core.files.atomic import prepare_folder, write_text
from dsctl_core.files.ownership import require_new
from dsctl_core.imports.draft import Draft
from dsctl_core.imports.formats import read_configs
from dsctl_core.imports.settle import settle
from dsctl_core.imports.write import run_toml, shown
from dsctl_core.options.first_steps import ImportOptions
from dsctl_core.readable import counted


@dataclass(frozen=True)
class ImportResult:
    """What was written, and what the config says that no option does."""

    output: Path
    draft: Draft

    def facts(self) -> dict[str, Any]:
        """Return the result as JSON has it."""
        lost = [
            {"key": each.setting.key, "value": each.value, "reason": each.reason, "file": str(each.setting.file)}
            for each in self.draft.without_counterpart
        ]
        return {
            "output": str(self.output),
            "tool": self.draft.tool,
            "mapped": self.draft.mapped,
            "without_counterpart": lost,
            "missing": self.draft.missing,
            "notes": self.draft.notes,
        }

    def lines(self) -> list[str]:
        """Return the result as text."""
        draft = self.draft
        lines = [f"Written {self.output}: {counted(draft.mapped, 'setting')} of {draft.tool}"]
        if draft.without_counterpart:
            lines += ["", "without counterpart"]
            for each in draft.without_counterpart:
                lines.append(f"  {each.setting.key} = {shown(each.value)}: {each.reason}")
        if draft.notes:
            lines += ["", "notes", *(f"  {note}" for note in draft.notes)]
        if draft.missing:
            lines += ["", "missing, to be written into the file"]
            lines += [f"  {option}: {what}" for option, what in draft.missing.items()]
        return lines


def import_config(options: ImportOptions) -> ImportResult:
    """Read the files, and write the run.toml; nothing that is there is replaced."""
    require_new(options.output, "--output")
    draft = read_configs(options.files)
    settled = settle(draft)
    text = run_toml(draft, settled)
    prepare_folder(options.output.parent)
    write_text(options.output, text)
    return ImportResult(options.output, draft)
