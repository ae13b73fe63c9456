"""Recognize the files of other training tools, and read the settings in them."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from dsctl_core.errors import DsctlError
from dsctl_core.files.json import DEPTH, JsonFault, check_values, parse_json
from dsctl_core.files.regular import read_regular
from dsctl_core.imports import ai_toolkit, diffsynth, diffusion_pipe, kohya
from dsctl_core.imports.datasets import is_list_of_tables, set_datasets, tables_in
from dsctl_core.imports.draft import Draft, Setting, flattened
from dsctl_core.imports.rules import apply
from dsctl_core.imports.shell import Command, read_script
from dsctl_core.options.config_file import parse_toml

READ = (
    "it reads the training command of DiffSynth-Studio or kohya in a shell script, the YAML of ai-toolkit, and the "
    "TOML files of musubi-tuner, sd-scripts and diffusion-pipe"
)
LARGEST = 2**20  # bytes of a config
OTHER_COMMAND = "another command than the training"
ENVIRONMENT = "a variable of the environment: set it for dsctl where it is needed"
READ_BY_DSCTL = re.compile(r"(DSCTL|DIFFSYNTH)_\w+")
# Where a file of a tool names the file of its dataset or of its arguments.
NAMED_FILES = ("dataset_config", "config_file", "dataset")


@dataclass
class Part:
    """A file of a tool: its settings, and whether they go over those of the other files.

    `datasets` are the settings of each of its datasets, which are not among the others.
    """

    tool: ModuleType
    settings: list[Setting]
    datasets: list[list[Setting]] = field(default_factory=list)
    rank: int = 0
    also: list[tuple[Setting, str]] = field(default_factory=list)  # what has no counterpart, with the reason


def read_configs(files: Sequence[Path]) -> Draft:
    """Return what follows from the files of one tool; a DsctlError for files that are of none, or of several."""
    parts = [_read(file) for file in files]
    parts += [_read(file) for file in _named(parts, files)]
    tools = list(dict.fromkeys(part.tool for part in parts))
    if len(tools) > 1:
        names = " and ".join(tool.TOOL for tool in tools)
        raise DsctlError(f"the files are of {names}", hint="import the files of one tool at a time")
    tool = tools[0]
    draft = Draft(tool.TOOL)
    datasets = [dataset for part in parts for dataset in part.datasets]
    if datasets:
        set_datasets(draft, datasets, tool.DATASET, tool.finish_dataset)
    for part in sorted(parts, key=lambda part: part.rank):
        several = tool.SEVERAL if tool is ai_toolkit else ()
        apply(tool.TABLE, part.settings, draft, several)
        for setting, reason in part.also:
            draft.lose([setting], reason)
    tool.finish(draft)
    return draft


def _named(parts: Sequence[Part], files: Sequence[Path]) -> list[Path]:
    """Return the files that the others name and that are there: beside the file that names them, or here."""
    known = {file.resolve() for file in files}
    found = []
    for setting in (each for part in parts for each in part.settings if each.keys[-1] in NAMED_FILES):
        if len(setting.keys) > 1 or not isinstance(setting.value, str) or not setting.value.endswith(".toml"):
            continue
        places = (Path(setting.value), setting.file.parent / setting.value)
        place = next((path for path in places if path.is_file()), None)
        if place is not None and place.resolve() not in known:
            known.add(place.resolve())
            found.append(place)
    return found


def _read(file: Path) -> Part:
    suffix = file.suffix.lower()
    if suffix in (".yaml", ".yml", ".json"):
        values = parse_json(_text(file), str(file), hint=READ) if suffix == ".json" else _read_yaml(file)
        if isinstance(values, dict) and ai_toolkit.is_config(values):
            return Part(ai_toolkit, *ai_toolkit.settings_of(values, file))
        raise _unknown(file)
    if suffix == ".toml":
        return _read_toml(file)
    return _read_shell(file)


def _unknown(file: Path) -> DsctlError:
    return DsctlError(f"{file} is no config that `dsctl import` knows", hint=READ)


def _text(file: Path) -> str:
    try:
        data = read_regular(file, LARGEST)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        reason = getattr(error, "strerror", None) or error
        raise DsctlError(f"{file} cannot be read: {reason}", hint="check the path") from error
    if b"\0" in data:
        raise _unknown(file)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _unknown(file) from None


def _read_yaml(file: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file of plain values; aliases, by which a small file grows large, are refused."""
    import yaml

    text = _text(file)
    try:
        _check_events(text, file)
        values = _plain(yaml.load(text, strict_loader()))
        check_values(values, finite=False)
    except JsonFault as fault:
        raise DsctlError(f"{file}: {fault}", hint="write a plain value") from fault
    except RepeatedKey as error:
        raise DsctlError(f"{file}: {error}", hint="leave one of them") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split()) or "it is nested too deep"
        raise DsctlError(f"{file} is not valid YAML: {reason}", hint=READ) from error
    return values if isinstance(values, dict) else {}


def _check_events(text: str, file: Path) -> None:
    """Refuse aliases, and nesting deeper than DEPTH, before the time that it takes to read grows with its square."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise DsctlError(f"{file} has aliases (*name)", hint="write the values out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH:
            raise JsonFault((), f"is nested more than {DEPTH} levels deep")


class RepeatedKey(ValueError):
    """A key that stands twice in a mapping; the text names the key and the lines."""


@functools.cache
def strict_loader() -> Any:
    """Return PyYAML's loader of plain values, with RepeatedKey raised where it would take the last of several."""
    import yaml

    class StrictLoader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            lines: dict[str, int] = {}
            for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                name, line = str(self.construct_object(key, deep=True)), key.start_mark.line + 1
                if name in lines:
                    raise RepeatedKey(f"the key {name} stands twice, in lines {lines[name]} and {line}")
                lines[name] = line
            return super().construct_mapping(node, deep=deep)

    return StrictLoader


def _plain(value: Any) -> Any:
    """Return a value with text for keys, and for dates and whatever else YAML has beside text and numbers."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _read_toml(file: Path) -> Part:
    values = _plain(parse_toml(_text(file), f"FILE {file}"))
    if is_list_of_tables(values.get("directory")):
        return Part(diffusion_pipe, [], datasets=tables_in(values, file, ("directory",)))
    if isinstance(values.get("model"), dict) and diffusion_pipe.SIGNS & values.keys():
        return Part(diffusion_pipe, list(flattened(values, file)), rank=1)
    if is_list_of_tables(values.get("datasets")):
        return Part(kohya, *kohya.datasets_of(values, file))
    # The headings of the tables are for the reader: an argument is the same under any of them.
    inside = {name: value for name, value in values.items() if isinstance(value, dict)}
    names = {*values, *(name for table in inside.values() for name in table)}
    if not kohya.SIGNS & names:
        raise _unknown(file)
    settings = [Setting(file, (name,), value) for name, value in values.items() if name not in inside]
    for heading, table in inside.items():
        settings += [Setting(file, each.keys, each.value, f"{heading}.") for each in flattened(table, file)]
    return Part(kohya, settings, rank=1)


def _read_shell(file: Path) -> Part:
    script = read_script(_text(file), file)
    found = [(command, tool) for command in script.commands if (tool := _tool_of(command)) is not None]
    if not found:
        raise _unknown(file)
    if len(found) > 1:
        raise DsctlError(f"{file} has {len(found)} training commands", hint="put each into a file of its own")
    command, tool = found[0]
    part = Part(tool, _flags(command, file), rank=2)
    for each in script.commands:
        if each is not command:
            part.also.append((Setting(file, (each.words[0],), " ".join(each.words)), OTHER_COMMAND))
    for name, value in {**script.exported, **command.environment}.items():
        reason = f"{ENVIRONMENT} (dsctl reads it too)" if READ_BY_DSCTL.fullmatch(name) else ENVIRONMENT
        part.also.append((Setting(file, (name,), value), reason))
    for name in dict.fromkeys(command.unset):
        part.also.append((Setting(file, (f"${name}",), None), "the file does not set this variable of the shell"))
    return part


def _tool_of(command: Command) -> ModuleType | None:
    """Return the tool whose training a command starts; None for other commands."""
    flags = {_name(word) for word in command.words if word.startswith("--")}
    if not any(word.endswith(".py") or word in ("-m", "train") for word in command.words):
        return None
    if diffsynth.SIGNS & flags:
        return diffsynth
    # What only encodes has a dataset, and nothing that is trained.
    trains = any("train" in Path(word).name for word in command.words if word.endswith(".py"))
    return kohya if trains and (kohya.SIGNS | {"config_file"}) & flags else None


def _name(word: str) -> str:
    return word.partition("=")[0].removeprefix("--").replace("-", "_")


def _flags(command: Command, file: Path) -> list[Setting]:
    """Return the flags of a command: those before the script, which are of `accelerate launch`, as accelerate.NAME.

    Of a flag that is repeated the last one comes last, as trainers read it; other words are settings too.
    """
    settings: list[Setting] = []
    words, launched, script = list(command.words), "launch" in command.words, False
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            if script:
                settings.append(Setting(file, (word,), None))
            script = script or word.endswith(".py")
            continue
        keys = ("accelerate", _name(word)) if launched and not script else (_name(word),)
        values = [word.partition("=")[2]] if "=" in word else []
        while "=" not in word and words and not words[0].startswith("--") and not words[0].endswith(".py"):
            values.append(words.pop(0))
        settings.append(Setting(file, keys, True if not values else values[0] if len(values) == 1 else values))
    return settings
