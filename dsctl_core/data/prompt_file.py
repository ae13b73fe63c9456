"""Read prompts from text files."""

from __future__ import annotations

from pathlib import Path

from dsctl_core.errors import DsctlError, UsageError

# Suffixes of files whose lines are no prompts: tables and documents.
OTHER = (
    *(".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather", ".xls", ".xlsx", ".ods"),
    *(".yaml", ".yml", ".toml", ".xml", ".html", ".htm", ".docx", ".pdf"),
)


def prompt_lines(file: Path, flag: str, forms: str = "a .txt file with one prompt per line") -> list[str]:
    """Return the prompts in a text file, one per line, without empty lines.

    `flag` is the option that named the file, and `forms` the files that it takes, for messages. Raises a UsageError for
    a table or a document, by its suffix, and a DsctlError for a file without a prompt.
    """
    if file.suffix.lower() in OTHER:
        raise UsageError(f"{flag} {file} is a {file.suffix.lower()}, whose lines are no prompts", hint=f"give {forms}")
    prompts = [line.strip() for line in text_lines(file, flag) if line.strip()]
    if not prompts:
        raise DsctlError(f"{flag} {file} has no prompt in it", hint="write one prompt per line")
    return prompts


def text_lines(file: Path, flag: str) -> list[str]:
    """Return the lines of a UTF-8 text file; raise `DsctlError` if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DsctlError(
            f"{flag} {file} cannot be read: {error.strerror}", hint="use a text file with one prompt per line"
        ) from error
    except UnicodeDecodeError as error:
        raise DsctlError(f"{flag} {file} is not UTF-8 text: {error}", hint="save it as UTF-8") from error
