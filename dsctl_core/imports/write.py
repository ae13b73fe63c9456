"""Write a draft as a run.toml: the options with the keys they came from, and what has no counterpart as comments."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from dsctl_core.files.toml import toml_comment, toml_value
from dsctl_core.imports.draft import Draft, Setting
from dsctl_core.options import TrainOptions
from dsctl_core.options.datasets import KEY, DatasetTable


def run_toml(draft: Draft, options: TrainOptions) -> str:
    """Return the text of the run.toml; `options` are those of the draft as they were read."""
    return "\n".join(_lines(draft, options)) + "\n"


def _lines(draft: Draft, options: TrainOptions) -> Iterator[str]:
    files = sorted({setting.file.name for settings in draft.sources.values() for setting in settings})
    yield toml_comment(f"Translated by `dsctl import` from {', '.join(files) or 'a config'} of {draft.tool}.")
    yield toml_comment("Train with `dsctl train --config FILE`; with --dry-run it says what that takes.")
    for option, what in draft.missing.items():
        yield ""
        yield toml_comment(f"Missing: {what}.")
        yield toml_comment(f"{option} = {32 if option == 'lora_rank' else chr(34) * 2}")
    values, heading = options.flat_values("json"), ""
    for option in (name for name in TrainOptions.flat_fields() if name in draft.options and name != KEY):
        if TrainOptions.panel_of(option) != heading:
            heading = TrainOptions.panel_of(option)
            yield ""
            yield toml_comment(heading)
        # Numbers stay numbers in an option that has them as text, such as bucket_resolutions.
        value = draft.options[option] if isinstance(draft.options[option], list) else values[option]
        yield f"{option} = {toml_value(value)}{_source(draft, option)}"
    for table in draft.tables:
        yield ""
        yield f"[[{KEY}]]"
        for key in (name for name in DatasetTable.model_fields if name in table.values):
            yield f"{key} = {toml_value(table.values[key])}{_comment(draft, table.sources[key])}"
    if draft.notes:
        yield ""
        yield toml_comment("Notes")
        yield from (toml_comment(f"- {note}") for note in draft.notes)
    if draft.always:
        yield ""
        yield toml_comment("Needs no option")
        yield from (toml_comment(f"{each.key} = {shown(each.value)}: {why}") for each, why in draft.always)
    if draft.without_counterpart:
        yield ""
        yield toml_comment("Without counterpart")
        for lost in draft.without_counterpart:
            yield toml_comment(f"{lost.setting.key} = {shown(lost.value)}: {lost.reason}")


def _source(draft: Draft, option: str) -> str:
    return _comment(draft, draft.sources[option])


def _comment(draft: Draft, settings: Iterable[Setting]) -> str:
    keys = ", ".join(setting.key for setting in settings)
    return f"  {toml_comment(keys)}" if keys else f"  {toml_comment(f'as {draft.tool} does')}"


def shown(value: Any) -> str:
    """Return a value of a setting on one line."""
    return json.dumps(value, ensure_ascii=False)
