"""Translate the datasets of another tool: one becomes options of the run, several become tables `[[dataset]]`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsctl_core.data.caption_files import CaptionFiles
from dsctl_core.data.folder import list_files
from dsctl_core.data.masks import MASK
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files.json import Keys
from dsctl_core.imports.draft import Draft, Setting, TableDraft, Unfit, flattened, unique, wrong
from dsctl_core.imports.rules import FALSE, Rule, Table, apply, number_of
from dsctl_core.options.datasets import KEY, DatasetTable

# Options of a run that have another name in the table of a dataset.
IN_TABLE = {"dataset_base_path": "path", "dataset_metadata_path": "metadata", "dataset_repeat": "repeat"}
OF_A_TABLE = ("regularization", "caption", "loss_weight")  # keys that only tables have
OF_THE_RUN = ("data_file_keys",)  # keys that every dataset has alike
LISTS = ("extra_inputs",)  # options whose values are gathered from all datasets
TO_LEARN = "regularization is beside a dataset that is to be learned, and there is none"


def tables_in(
    values: Mapping[str, Any],
    file: Path,
    names: Sequence[str],
    *,
    keys: Keys = (),
    inside: str = "",
    shared: Sequence[Setting] = (),
) -> list[list[Setting]]:
    """Return the settings of each dataset in tables inside one another, after those of the tables around it.

    The datasets are the tables `values[names[0]][i][names[1]][j]...`; where there is no such list, `values` itself is
    one. `keys` lead to `values`, and `shared` are settings of all datasets.
    """
    first = names[0] if names and is_list_of_tables(values.get(names[0])) else None
    own = flattened({name: value for name, value in values.items() if name != first}, file, keys, inside)
    here = [*shared, *(replace(setting, under=len(keys)) for setting in own)]
    if first is None:
        return [here]
    return [
        unit
        for number, each in enumerate(values[first])
        for unit in tables_in(each, file, names[1:], keys=(*keys, first, number), inside=inside, shared=here)
    ]


def is_list_of_tables(value: Any) -> bool:
    """Return whether a value is a list of tables, and not an empty one."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def set_datasets(
    draft: Draft, units: Sequence[Sequence[Setting]], table: Table, finish: Callable[[Draft], None]
) -> None:
    """Set what follows from the settings of each dataset; `table` has their rules, and `finish` combines them."""
    drafts = []
    for settings in units:
        own = Draft(draft.tool)
        apply(table, settings, own)
        finish(own)
        own.lose(own.aside.values(), "nothing to combine it with")
        drafts.append(own)
    for own in drafts:
        for note in own.notes:
            draft.note(note)
    if len(drafts) == 1 and "regularization" in drafts[0].options:
        drafts[0].drop("regularization", TO_LEARN)
    if len(drafts) == 1 and not any(name in OF_A_TABLE for name in drafts[0].options):
        for option, value in drafts[0].options.items():
            draft.set(option, value, *drafts[0].sources[option])
    else:
        _set_tables(draft, drafts)
    _settle_the_rest(draft, drafts)


def _set_tables(draft: Draft, drafts: Sequence[Draft]) -> None:
    _one_column(drafts)
    for own in drafts:
        table = TableDraft()
        for option in list(own.options):
            key = IN_TABLE.get(option, option)
            if key in DatasetTable.model_fields and key not in OF_THE_RUN:
                table.values[key], table.sources[key] = own.options[option], own.sources[option]
        if "path" not in table.values:
            own.lose([each for settings in own.sources.values() for each in settings], "its dataset names no folder")
            continue
        draft.tables.append(table)
        _drop_what_is_wrong(draft, table)
    _set_options_of_the_run(draft, drafts)
    if all(table.values.get("regularization") for table in draft.tables):
        for table in draft.tables:
            draft.drop_of_table(table, "regularization", TO_LEARN)
    _name(draft)
    if draft.tables:
        draft.options[KEY] = [table.values for table in draft.tables]
        draft.sources[KEY] = []


def _drop_what_is_wrong(draft: Draft, table: TableDraft) -> None:
    """Take out of a table, one by one, the keys without which it can be read."""
    while (fault := _fault(table.values)) is not None:
        names = [name for name in reversed(table.values) if name != "path"]
        without = (name for name in names if _fault(_but(table.values, name)) is None)
        name = next(without, names[0])
        if name == "loss_weight" and table.sources[name]:
            raise wrong(table.sources[name][-1], fault.problem.rpartition(", which is ")[2])
        draft.drop_of_table(table, name, fault.problem)


def _but(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def _fault(values: Mapping[str, Any]) -> UsageError | None:
    try:
        DatasetTable.parse(dict(values))
    except UsageError as error:
        return error
    return None


def _set_options_of_the_run(draft: Draft, drafts: Sequence[Draft]) -> None:
    """Set what datasets say of the whole run, such as the size of a batch: the first value that there is counts."""
    used = [own for own in drafts if "dataset_base_path" in own.options]
    names = dict.fromkeys(option for own in used for option in own.options)
    for option in (name for name in names if _is_of_the_run(name)):
        those = [own for own in used if option in own.options]
        value = those[0].options[option]
        if option in LISTS:
            value = list(dict.fromkeys(each for own in those for each in own.options[option]))
        agree = [own for own in those if option in LISTS or own.options[option] == value]
        draft.set(option, value, *unique([each for own in agree for each in own.sources[option]]))
        for own in those:
            if own not in agree:
                own.lose(own.sources[option], f"a run has one {option} for all its datasets: {value!r}")


def _is_of_the_run(option: str) -> bool:
    return option in OF_THE_RUN or IN_TABLE.get(option, option) not in DatasetTable.model_fields


def _one_column(drafts: Sequence[Draft]) -> None:
    """Let datasets of pictures and of videos have one column of files: pictures are videos of one frame."""
    named = [own for own in drafts if "data_file_keys" in own.options]
    if len({tuple(own.options["data_file_keys"]) for own in named}) < 2:
        return
    for own in named:
        own.options["data_file_keys"] = ["video"]
        if "column" in own.options:
            pairs = [pair.partition("=") for pair in own.options["column"]]
            own.options["column"] = [f"{'video' if new == 'image' else new}={old}" for new, _, old in pairs]


def _name(draft: Draft) -> None:
    """Give names to tables whose folders have one name, which messages and metrics tell apart."""
    seen: set[str] = set()
    for table in draft.tables:
        label = own = Path(table.values["path"]).absolute().name or "dataset"
        number = 1
        while label in seen:
            number += 1
            label = f"{own}-{number}"
        seen.add(label)
        if label != Path(table.values["path"]).absolute().name:
            table.values, table.sources = {**table.values, "name": label}, {**table.sources, "name": []}


def _settle_the_rest(draft: Draft, drafts: Sequence[Draft]) -> None:
    """Take over what datasets accept and what they lose: of what is said of all of them, each once."""
    done = draft.mapped_settings()
    for own in drafts:
        for setting, why in own.always:
            if not _among(setting, done):
                draft.accept(setting, why)
                done.append(setting)
    done += [each.setting for each in draft.without_counterpart]
    for own in drafts:
        for each in own.without_counterpart:
            if not _among(each.setting, done):
                draft.lose([each.setting], each.reason)
                done.append(each.setting)


def _among(setting: Setting, settings: Sequence[Setting]) -> bool:
    return len(unique([*settings, setting])) == len(unique(settings))


def regularization() -> Rule:
    """Return a rule for a switch that makes a dataset one for regularization."""

    def rule(draft: Draft, setting: Setting) -> None:
        if setting.value in FALSE:
            draft.accept(setting, "it asks for nothing")
        else:
            draft.set("regularization", True, setting)

    return rule


def alpha_mask() -> Rule:
    """Return a rule for a switch that reads masks from alpha channels."""

    def rule(draft: Draft, setting: Setting) -> None:
        if setting.value in FALSE:
            draft.accept(setting, "it asks for nothing")
        else:
            draft.set("mask_from_alpha", True, setting)
            draft.set("extra_inputs", [MASK], setting)

    return rule


def caption_of_all(draft: Draft, setting: Setting) -> None:
    """Set the caption of a dataset whose files have none, as the tools take it for those without one."""
    folder = draft.options.get("dataset_base_path")
    try:
        files = list_files(Path(str(folder))) if folder is not None and Path(str(folder)).is_dir() else None
    except DsctlError:
        files = None
    captions = CaptionFiles(files.others) if files is not None else None
    if files is None or captions is None or not all(map(captions.lacks, files.media)):
        raise Unfit("it is the caption of files without one; where none has one, write caption into the [[dataset]]")
    draft.set("caption", setting.value, setting)


def weigh_regularization(draft: Draft, settings: Sequence[Setting]) -> None:
    """Set how much the loss of the datasets for regularization counts."""
    tables = [table for table in draft.tables if table.values.get("regularization")]
    for setting in settings:
        if not tables:
            draft.lose([setting], "there is no dataset for regularization")
            continue
        weight = number_of(setting)
        for table in tables:
            before, sources = table.values.get("loss_weight", 1.0), table.sources.get("loss_weight", [])
            table.values["loss_weight"], table.sources["loss_weight"] = before * weight, [*sources, setting]
            _drop_what_is_wrong(draft, table)
