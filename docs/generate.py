"""Writes docs/reference/ from the code, or with --check says whether it is current."""

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import python_reference

from dsctl.app import COMMANDS
from dsctl_core.families import families
from dsctl_core.family import Component, Family
from dsctl_core.options import Options
from dsctl_core.options.messages import Positional, choices, requirement, spelled

ARGUMENT = "By position"
REFERENCE = Path(__file__).parent / "reference"
MADE = "<!-- Written by `make docs` from the code: change that instead. -->"
COMMON = """\
Every command also takes `--json` (the result as one JSON object on stdout, everything else on stderr), `--quiet`,
`--verbose` and `--help`. `dsctl --version` shows the version, and `dsctl --install-completion` sets up completion in
the shell. Underscores in flags are accepted: `--lora_rank` is `--lora-rank`.

Exit code 0: done. 1: it failed. 2: the command itself is wrong."""


def commands(table: dict[str, tuple[Any, str]], path: str = "dsctl") -> Iterator[tuple[str, str, type[Options]]]:
    """Yield each command's full name, what it does, and its options."""
    for name, (target, summary) in table.items():
        if isinstance(target, dict):
            yield from commands(target, f"{path} {name}")
            continue
        module, _, function = target.partition(":")
        command = getattr(importlib.import_module(module), function)
        (options,) = (kind for kind in get_type_hints(command.__wrapped__).values() if kind is not type(None))
        yield f"{path} {name}", summary, options


def command_line() -> str:
    """Return the page about commands and options."""
    parts = [MADE, "# Command line", COMMON]
    for name, summary, options in commands(COMMANDS):
        parts += [f"## {name}", summary]
        for panel, rows in sorted(_panels(options).items(), key=lambda item: item[0] != ARGUMENT):
            parts.append(f"**{panel}**")
            parts.append("\n".join(["| | takes | default | |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _panels(options: type[Options]) -> dict[str, list[str]]:
    """Return the rows of each heading, in the order in which the options stand in --help."""
    panels: dict[str, list[str]] = {}
    for name, field in options.flat_fields().items():
        panel = options.panel_of(name)
        positional = any(isinstance(mark, Positional) for mark in field.metadata)
        takes = " ".join(f"`{word}`" for word in choices(field)) or requirement(field)
        default = "required" if field.is_required() else _default(field.default)
        cells = (f"`{spelled(name, field)}`", "" if takes == "true or false" else takes, default, field.description)
        panels.setdefault(ARGUMENT if positional else panel, []).append(_row(cells))
    return panels


def _default(value: Any) -> str:
    if value is None or value == () or value == "":
        return ""
    return f"`{','.join(value) if isinstance(value, tuple) else str(value).lower()}`"


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


PAGES = {"cli.md": command_line, "models.md": models, "python.md": python}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is not current")
    check = parser.parse_args().check
    for name, page in PAGES.items():
        path, text = REFERENCE / name, page()
        current = path.is_file() and path.read_text(encoding="utf-8") == text
        if check and not current:
            print(f"error: docs/reference/{name} is not current\nhint: make docs", file=sys.stderr)
            return 1
        if not current:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
