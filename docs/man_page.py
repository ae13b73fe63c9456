"""Writes the manual page from the declarations of the commands and their options, in the macros of man(7)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic.fields import FieldInfo

from dsctl_core.options import Options
from dsctl_core.options.messages import choices, default_text, is_positional, other_spellings, requirement, spelled
from dsctl_core.version import __version__

Command = tuple[str, str, type[Options], bool]
ENVIRONMENT = {
    "DSCTL_MODEL_BASE_PATH": "The folder of downloaded models, ./models if it is not set.",
    "DSCTL_SKIP_DOWNLOAD": "1: use no network at all.",
    "DSCTL_DOWNLOAD_SOURCE": "modelscope (the default) or huggingface.",
    "DSCTL_REMOTE_CACHE_GB": "Most gigabytes of local copies of remote files, 50 if it is not set.",
    "DSCTL_DEBUG": "1: show the traceback of an error.",
}
STATUS = {"0": "Done.", "1": "It failed.", "2": "The command itself is wrong.", "130": "It was interrupted."}


def page(commands: Iterable[Command], common: str, config: str) -> str:
    """Return the manual page. `common` says what all commands have, `config` what their --config does."""
    parts = [
        '.\\" Written by `make docs` from the code: change that instead.',
        f'.TH DSCTL 1 "" "dsctl {__version__}" "User Commands"',
        ".SH NAME\ndsctl \\- train and run diffusion transformers from the command line",
        ".SH SYNOPSIS\n.B dsctl\n.I command\n.RI [ argument ...]\n.RI [ option ...]",
        ".SH DESCRIPTION",
        "\n.PP\n".join(_text(paragraph) for paragraph in common.split("\n\n")),
        ".SH COMMANDS",
    ]
    for name, summary, options, from_file in commands:
        parts += [f".SS {_text(name)}", _text(summary)]
        parts += [line for field in options.flat_fields().items() for line in _option(*field)]
        if from_file:
            parts += [f".TP\n\\fB\\-\\-config\\fR \\fIa path\\fR\n{_text(config)}"]
    for title, entries in (("ENVIRONMENT", ENVIRONMENT), ("EXIT STATUS", STATUS)):
        parts.append(f".SH {title}")
        parts += [f".TP\n.B {_text(name)}\n{_text(text)}" for name, text in entries.items()]
    return "\n".join(parts) + "\n"


def _option(name: str, field: FieldInfo) -> Iterator[str]:
    takes = ", ".join(choices(field)) or requirement(field)
    takes = "" if takes == "true or false" else f" \\fI{_text(takes)}\\fR"
    if is_positional(field):
        flags = f"\\fI{_text(spelled(name, field))}\\fR"
    else:
        flags = ", ".join(f"\\fB{_text(flag)}\\fR" for flag in (spelled(name, field), *other_spellings(field)))
    default: Any = "required" if field.is_required() else default_text(field)
    told = "" if default in (None, "false") else f" ({default})" if field.is_required() else f" Default: {default}."
    yield f".TP\n{flags}{takes}\n{_text(f'{field.description}{told}')}"


def _text(text: str) -> str:
    """Return `text` as roff prints it: no escape, no hyphen that may be broken, no line that begins with a macro."""
    line = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^(?=[.'])", "\\\\&", line.replace("`", ""))
