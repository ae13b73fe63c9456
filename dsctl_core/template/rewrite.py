"""Set TEMPLATE_MODEL_PATH in the code of a template, without changing any other byte."""

from __future__ import annotations

import ast
import codecs
from pathlib import Path

from dsctl_core.errors import DsctlError
from dsctl_core.template.contract import WEIGHTS


def with_weights(code: Path, content: bytes, value: str | list[str]) -> bytes:
    """Return `content`, the source of the file `code`, with `value` assigned to TEMPLATE_MODEL_PATH.

    If there is no assignment, one is appended. Raises `DsctlError` if the rewrite is ambiguous: if there are several
    assignments, or if it is not a plain assignment at the top level.
    """
    try:
        tree = ast.parse(content)
        content.decode("utf-8")
    except (SyntaxError, ValueError) as error:
        raise DsctlError(f"{code} is not valid Python in UTF-8: {error}", hint="correct the file") from error
    new = _literal(value)
    stores = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == WEIGHTS and isinstance(node.ctx, ast.Store | ast.Del)
    ]
    if not stores:
        newline = _newline(content)
        separator = b"" if not content or content.endswith((b"\n", b"\r")) else newline
        return content + separator + f"{WEIGHTS} = {new}".encode() + newline
    if len(stores) > 1:
        lines = ", ".join(map(str, stores))
        raise DsctlError(
            f"{code} sets {WEIGHTS} {len(stores)} times (lines {lines})", hint="leave one assignment, at the top level"
        )
    node = next((each for each in tree.body if _assigns(each)), None)
    assigned = None if node is None else getattr(node, "value", None)
    if assigned is None:
        raise DsctlError(
            f"{code}, line {stores[0]}, sets {WEIGHTS} in a branch or together with another name",
            hint=f"use one plain assignment at the top level: {WEIGHTS} = None",
        )
    start = _offset(content, assigned.lineno, assigned.col_offset)
    end = _offset(content, assigned.end_lineno, assigned.end_col_offset)
    return content[:start] + new.encode() + content[end:]


def _assigns(node: ast.stmt) -> bool:
    """Return whether `node` is `TEMPLATE_MODEL_PATH = ...` or `TEMPLATE_MODEL_PATH: ... = ...` and nothing else."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return len(targets) == 1 and isinstance(targets[0], ast.Name) and targets[0].id == WEIGHTS


def _literal(value: str | list[str]) -> str:
    """Return `value` as a literal in double quotes. File names of shards need no escapes."""
    return f'"{value}"' if isinstance(value, str) else "[" + ", ".join(map(_literal, value)) + "]"


def _offset(content: bytes, line: int, column: int) -> int:
    """Return the offset in `content` of a position from ast: a line from 1 and a column in UTF-8 bytes."""
    lines = content.splitlines(keepends=True)
    bom = len(codecs.BOM_UTF8) if line == 1 and content.startswith(codecs.BOM_UTF8) else 0
    return sum(map(len, lines[: line - 1])) + column + bom


def _newline(content: bytes) -> bytes:
    return b"\r\n" if b"\r\n" in content else b"\n"
