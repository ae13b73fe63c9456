"""Read a TOML file of options as strictly as JSON: bounded nesting, and no values but text, numbers and lists."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files.json import JsonFault, check_values, field_name, walk_values

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LINES = "lines look like: lora_rank = 16"


def read_toml(file: Path, flag: str, tables: Collection[str] = ()) -> dict[str, Any]:
    """Return the content of the TOML file that the option `flag` named, whose keys are options.

    The keys `tables` may be lists of tables, [[key]]. Raises a DsctlError for a file that cannot be read, and a
    UsageError for one that is no TOML, or that has a date or a table inside of another value. Numbers that are not
    finite are left to the options, which refuse them by name.
    """
    values = load_toml(file, flag)
    for keys, value in walk_values(values):
        is_table = len(keys) == 2 and keys[0] in tables and isinstance(value, dict)
        if len(keys) > 1 and not is_table and not isinstance(value, str | int | float | list):
            what = "a table" if isinstance(value, dict) else "a date"
            raise UsageError(f"{field_name(keys)} in {file} is {what}, which no option takes", hint=LINES)
    return values


def load_toml(file: Path, flag: str) -> dict[str, Any]:
    """Return the content of the TOML file that the option `flag` named, with all of its tables.

    Raises a DsctlError for a file that cannot be read, and a UsageError for one that is no TOML.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DsctlError(f"{flag} {file} does not exist", hint="check the path") from None
    except OSError as error:
        raise DsctlError(f"{flag} {file} cannot be read: {error.strerror}", hint="give a TOML file") from error
    except ValueError as error:
        raise UsageError(f"{flag} {file} is not TOML: {error}", hint=LINES) from error
    return parse_toml(text, f"{flag} {file}")


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Return the content of a TOML text; a UsageError names `where` it stands, if it is none."""
    try:
        values = tomllib.loads(text)
        check_values(values, finite=False)
        return values
    except RecursionError:
        raise UsageError(f"{where} is nested too deep", hint=LINES) from None
    except JsonFault as fault:
        raise UsageError(f"{where}: {fault}", hint=LINES) from fault
    except ValueError as error:
        raise UsageError(f"{where} is not TOML: {error}", hint=LINES) from error
