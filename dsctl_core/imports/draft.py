"""Collect the options that follow from the settings of another tool, and the settings that none follows from."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files.json import Keys, field_name
from dsctl_core.options import TrainOptions

SECRET = re.compile(r"(api_?key|token|password|secret)$", re.IGNORECASE)
HIDDEN = "(a secret, not shown)"
# Options that other tools switch off by 0 or -1, where dsctl leaves them out.
OFF = {"save_steps", "sample_every", "seed", "sample_seed", "max_pixels", "fps", "lr_num_cycles"}
NO_OPTION = "dsctl has no such option"


@dataclass(frozen=True)
class Setting:
    """A key of another tool's config and its value: text, a number, true or false, None, or a list of these.

    `keys` lead to it from the table `inside` of the file, such as "config.process[0].". The first `under` of them lead
    to the table of one of several datasets.
    """

    file: Path
    keys: Keys
    value: Any
    inside: str = ""
    under: int = 0

    @property
    def key(self) -> str:
        """The key as its own file writes it: `datasets[0].resolution`, or a flag."""
        return self.inside + (str(self.keys[0]) if len(self.keys) == 1 else field_name(self.keys))

    @property
    def name(self) -> str:
        """The key as tables of rules write it, without numbers and from its dataset on: `samples[].prompt`."""
        name = "".join("[]" if isinstance(key, int) else f".{key}" for key in self.keys[self.under :])
        return name.removeprefix(".")

    @property
    def later(self) -> bool:
        """Whether it belongs to a second or later table of a list of tables, other than the datasets."""
        return any(isinstance(key, int) and key > 0 for key in self.keys[self.under :])


def flattened(values: Mapping[str, Any], file: Path, keys: Keys = (), inside: str = "") -> Iterator[Setting]:
    """Yield the settings in nested tables, in order; lists of plain values stay whole."""
    for key, value in values.items():
        path = (*keys, str(key))
        if isinstance(value, dict) and value:
            yield from flattened(value, file, path, inside)
        elif isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            for number, each in enumerate(value):
                yield from flattened(each, file, (*path, number), inside)
        else:
            yield Setting(file, path, value, inside)


def unique(settings: Iterable[Setting]) -> list[Setting]:
    """Return the settings without those that come again: what is said of all datasets is a setting of each."""
    return list({(each.file, each.inside, each.keys, repr(each.value)): each for each in settings}.values())


@dataclass(frozen=True)
class Lost:
    """A setting without counterpart, and why it has none."""

    setting: Setting
    reason: str

    @property
    def value(self) -> Any:
        """The value as it may be shown: nothing secret."""
        return HIDDEN if SECRET.search(self.setting.key) and self.setting.value else self.setting.value


class Unfit(Exception):
    """A value that an option cannot express; the text says why."""


class Wrong(Exception):
    """A value that has no meaning in any tool; the text says what it is not, such as "no number"."""


def wrong(setting: Setting, fault: str) -> DsctlError:
    """Return the error for a setting whose value is a mistake: a run without it would be another one."""
    value = HIDDEN if SECRET.search(setting.key) else setting.value
    return DsctlError(
        f"{setting.file}: {setting.key} is {reprlib.repr(value)}, which is {fault}",
        hint="mend it in that file, or take it out",
    )


def refuse_wrong(option: str, value: Any, setting: Setting) -> None:
    """Raise a DsctlError for a value of `setting` that the option cannot have and that is no word of the tool's own.

    A number out of range is one, but for those by which tools switch off what OFF names. So is anything that is no
    number in the place of one, and what is no text in the place of a text.
    """
    try:
        TrainOptions.check_one(option, value)
    except UsageError as error:
        if option in OFF and value in (0, -1) and not isinstance(value, bool):
            return
        if _is_number(option) or not isinstance(value, str):
            raise wrong(setting, error.problem.rpartition(", which is ")[2]) from error
    if isinstance(value, bool) and _is_number(option):
        raise wrong(setting, "no number")


def _is_number(option: str) -> bool:
    """Return whether an option takes a number and nothing else but to be left out."""
    field = TrainOptions.flat_fields().get(option)
    types = {each for each in _types(field.annotation) if each is not type(None)} if field else set()
    return bool(types) and types <= {int, float}


def _types(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    inner = get_args(annotation)
    if not inner:
        yield annotation
    for each in inner if get_origin(annotation) in (Union, UnionType) else ():
        yield from _types(each)


@dataclass
class TableDraft:
    """One of several datasets: the keys of its table [[dataset]], and the settings that each follows from."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, list[Setting]] = field(default_factory=dict)


@dataclass
class Draft:
    """The options of a run as far as they are known.

    Attributes:
        tool: Name of the tool that the config was written for.
        options: Values by the names of options of `dsctl train`.
        sources: The settings that each option follows from; those that are defaults of the tool have none.
        always: Settings for which no option is needed, with what dsctl does in any case.
        without_counterpart: Settings that no option expresses.
        notes: What the user should know about the translation.
        given: Names of the settings of the run that have a value, with a counterpart or without.
        aside: Settings that only make sense together, by their names, until the tool combines them.
        tables: The datasets, if there are several; they are the option `dataset`.
        missing: What the config does not say and the run needs, with what to write.
    """

    tool: str
    options: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, list[Setting]] = field(default_factory=dict)
    always: list[tuple[Setting, str]] = field(default_factory=list)
    without_counterpart: list[Lost] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    given: set[str] = field(default_factory=set)
    aside: dict[str, Setting] = field(default_factory=dict)
    tables: list[TableDraft] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def mapped(self) -> int:
        """The number of settings that an option expresses, or that dsctl follows without one."""
        return len(self.mapped_settings())

    def mapped_settings(self) -> list[Setting]:
        """Return the settings that an option expresses, or that dsctl follows without one; each once."""
        every = [self.sources, *(table.sources for table in self.tables)]
        found = [setting for sources in every for settings in sources.values() for setting in settings]
        return unique([*found, *(setting for setting, _ in self.always)])

    def set(self, option: str, value: Any, *settings: Setting) -> None:
        """Set an option that follows from `settings`; a value that the option cannot have is no counterpart.

        Raises a DsctlError for a value that is a mistake; see `refuse_wrong`. One that is empty says nothing.
        """
        if value is None:
            for setting in settings:
                self.accept(setting, "it is empty")
            return
        for setting in [each for each in settings if each.value == value] or settings[-1:]:
            refuse_wrong(option, value, setting)
        try:
            TrainOptions.check_one(option, value)
        except UsageError as error:
            self.lose(settings, error.problem)
            return
        if option in self.options:
            self.lose(self.sources[option], f"{settings[0].key if settings else self.tool} overrides it")
        self.options[option] = value
        self.sources[option] = list(settings)

    def default(self, option: str, value: Any, why: str) -> None:
        """Set an option that no setting speaks of to what the tool does then."""
        if option not in self.options:
            self.set(option, value)
            self.note(f"{option} = {value!r}: {why}")

    def add(self, option: str, value: str, setting: Setting) -> None:
        """Add a name to an option that takes several."""
        self.options[option] = [*self.options.get(option, []), value]
        self.sources.setdefault(option, []).append(setting)

    def drop(self, option: str, reason: str) -> None:
        """Take an option out again; its settings have no counterpart, for this reason."""
        settings = self.sources.pop(option)
        value = self.options.pop(option)
        self.lose(settings, reason)
        if not settings:
            self.note(f"{option} = {value!r} was left out: {reason}")

    def drop_of_table(self, table: TableDraft, key: str, reason: str) -> None:
        """Take a key out of the table of a dataset; its settings have no counterpart unless another table has them."""
        value, settings = table.values.pop(key), table.sources.pop(key)
        kept = {(each.file, each.keys) for each in self.mapped_settings()}
        self.lose([each for each in settings if (each.file, each.keys) not in kept], reason)
        if not settings:
            self.note(f"{key} = {value!r} was left out: {reason}")

    def accept(self, setting: Setting, why: str) -> None:
        """Take note of a setting that dsctl follows without an option."""
        self.always.append((setting, why))

    def lose(self, settings: Iterable[Setting], reason: str) -> None:
        """Take note of settings without counterpart."""
        self.without_counterpart += [Lost(setting, reason) for setting in settings]

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def pop(self, *names: str) -> list[Setting]:
        """Return the settings with these names that were put aside; they are put aside no longer."""
        return [self.aside.pop(name) for name in names if name in self.aside]
