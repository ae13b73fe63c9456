"""Writes docs/reference/ and the manual page from the code, or with --check says whether they are current."""

import argparse
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import man_page
import python_reference
from pydantic.fields import FieldInfo

from dsctl.app import COMMANDS
from dsctl.flags import CONFIG
from dsctl_core.families import families
from dsctl_core.family import Component, Family
from dsctl_core.options import Options
from dsctl_core.options.messages import (
    bare_type,
    choices,
    default_text,
    is_positional,
    other_spellings,
    requirement,
    spelled,
)

ARGUMENT = "By position"
FROM_FILE = "From a file"
HEADER = ("| | takes | default | |", "|---|---|---|---|")
DOCS = Path(__file__).parent
MADE = "<!-- Written by `make docs` from the code: change that instead. -->"
COMMON = """\
Every command also takes `--json` (the result as one JSON object on stdout, everything else on stderr), `--quiet`,
`--verbose` and `--help`. `dsctl --version` shows the version, and `dsctl --install-completion` sets up completion in
the shell. Underscores in flags are accepted: `--lora_rank` is `--lora-rank`. A flag without a value has an opposite
that begins with `--no-`, which beats a key of a file.

An option that is given and has no effect in the run is refused, and so are a flag that is given twice (unless it says
that it can be), and an empty path.

Exit code 0: done. 1: it failed. 2: the command itself is wrong."""


def commands(table: dict[str, tuple[Any, str]], path: str = "dsctl") -> Iterator[tuple[str, str, type[Options], bool]]:
    """Yield each command's full name, what it does, its options, and whether it takes them from a file too."""
    for name, (target, summary) in table.items():
        if isinstance(target, dict):
            yield from commands(target, f"{path} {name}")
            continue
        module, _, function = target.partition(":")
        command = getattr(importlib.import_module(module), function)
        (options,) = (kind for kind in get_type_hints(command.__wrapped__).values() if kind is not type(None))
        yield f"{path} {name}", summary, options, "config" in inspect.signature(command).parameters


def command_line() -> str:
    """Return the page about commands and options."""
    parts = [MADE, "# Command line", COMMON]
    for name, summary, options, config in commands(COMMANDS):
        parts += [f"## {name}", summary]
        for panel, rows in sorted(_panels(options).items(), key=lambda item: item[0] != ARGUMENT):
            parts.append(f"**{panel}**")
            parts.append("\n".join([*HEADER, *rows]))
        if config:
            parts += [f"**{FROM_FILE}**", "\n".join([*HEADER, _row(("`--config`", "a path", "", CONFIG))])]
    return "\n\n".join(parts) + "\n"


def _panels(options: type[Options]) -> dict[str, list[str]]:
    """Return the rows of each heading, in the order in which the options stand in --help."""
    panels: dict[str, list[str]] = {}
    for name, field in options.flat_fields().items():
        panel = options.panel_of(name)
        takes = " ".join(f"`{word}`" for word in choices(field)) or requirement(field)
        default = default_text(field)
        told = "required" if field.is_required() else "" if default is None else f"`{default}`"
        cells = (_flags(name, field), "" if takes == "true or false" else takes, told, field.description)
        panels.setdefault(ARGUMENT if is_positional(field) else panel, []).append(_row(cells))
    return panels


def _flags(name: str, field: FieldInfo) -> str:
    """Return all ways to write an option; of a switch that is not off by default, also the one that switches it off."""
    flags = [spelled(name, field), *other_spellings(field)]
    if bare_type(field.annotation) is bool and field.default is not False:
        flags.append(f"--no-{flags[0].removeprefix('--')}")
    return ", ".join(f"`{flag}`" for flag in flags)


def _row(cells: tuple[Any, ...]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def models() -> str:
    """Return the page about families and presets."""
    parts = [MADE, "# Models"]
    for family in families().values():
        parts += [f"## {family.title} (`{family.name}`)", _family(family)]
        for preset in family.presets:
            repositories = dict.fromkeys([preset.model_id, *preset.from_repositories.values()])
            place = ", ".join(f"`{name}`" for name in repositories if name) or "comes with the package"
            defaults = ", ".join(f"`--{name.replace('_', '-')} {value}`" for name, value in preset.defaults.items())
            parts.append(f"- **`{preset.name}`**: {preset.summary} ({place}). Defaults: {defaults}.")
    return "\n\n".join(parts) + "\n"


def _classes(part: Component) -> str:
    return " or ".join(f"`{name}`" for name in part.class_names)


def _family(family: Family) -> str:
    rows = [
        _row((f"`{part.name}`", f"`{part.folder}/`", f"{part.library} {_classes(part)}")) for part in family.components
    ]
    targets = ", ".join(f"`{name}`" for name in family.lora_targets)
    table = "\n".join(["| component | folder | class |", "|---|---|---|", *rows])
    sizes = f"Height and width are multiples of {family.division_factor}. A LoRA is put on {targets} of the `dit`."
    return f"{table}\n\n{sizes}"


def python() -> str:
    """Return the page about the public names of the library."""
    return f"{MADE}\n\n{python_reference.page()}\n"


def manual() -> str:
    """Return the manual page, for `man`."""
    return man_page.page(commands(COMMANDS), COMMON, CONFIG)


PAGES = {
    "reference/cli.md": command_line,
    "reference/models.md": models,
    "reference/python.md": python,
    "man/dsctl.1": manual,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is not current")
    check = parser.parse_args().check
    for name, page in PAGES.items():
        path, text = DOCS / name, page()
        current = path.is_file() and path.read_text(encoding="utf-8") == text
        if check and not current:
            print(f"error: docs/{name} is not current\nhint: make docs", file=sys.stderr)
            return 1
        if not current:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
