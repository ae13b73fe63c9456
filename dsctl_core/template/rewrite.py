"""Setting TEMPLATE_MODEL_PATH in a template's code and leaving every other byte of it as it is."""

from __future__ import annotations

import ast
import codecs
from pathlib import Path

from dsctl_core.errors import DsctlError
from dsctl_core.template.contract import WEIGHTS


def with_weights(code: Path, content: bytes, value: str | list[str]) -> bytes:
    """Return `content`, the source of `code`, with `value` assigned to TEMPLATE_MODEL_PATH.

    Where there is no such assignment, one is appended. Raises a DsctlError where a rewrite would be a guess: when
    there are several, or when it stands in a branch or beside other targets.
    """
    try:
        tree = ast.parse(content)
        content.decode("utf-8")
    except (SyntaxError, ValueError) as error:
        raise DsctlError(f"{code} is no Python in UTF-8: {error}", hint="correct that file") from error
    new = _literal(value)
    stores = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == WEIGHTS and isinstance(node.ctx, ast.Store | ast.Del)
    ]
    if not stores:
        end = _newline(content)
        gap = b"" if not content or content.endswith((b"\n", b"\r")) else end
        return content + gap + f"{WEIGHTS} = {new}".encode() + end
    if len(stores) > 1:
        lines = ", ".join(map(str, stores))
        raise DsctlError(
            f"{code} sets {WEIGHTS} {len(stores)} times (lines {lines})", hint="leave one assignment, at the top level"
        )
    node = next((each for each in tree.body if _assigns(each)), None)
    place = None if node is None else getattr(node, "value", None)
    if place is None:
        raise DsctlError(
            f"{code}, line {stores[0]}, sets {WEIGHTS} in a branch or together with something else",
            hint=f"write one plain line at the top level: {WEIGHTS} = None",
        )
    start = _offset(content, place.lineno, place.col_offset)
    end_at = _offset(content, place.end_lineno, place.end_col_offset)
    return content[:start] + new.encode() + content[end_at:]


def _assigns(node: ast.stmt) -> bool:
    """Return whether `node` is `TEMPLATE_MODEL_PATH = ...` or `TEMPLATE_MODEL_PATH: ... = ...` and nothing else."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return len(targets) == 1 and isinstance(targets[0], ast.Name) and targets[0].id == WEIGHTS


def _literal(value: str | list[str]) -> str:
    """Return the literal in double quotes, as formatters write it; the names are our own and need no escapes."""
    return f'"{value}"' if isinstance(value, str) else "[" + ", ".join(map(_literal, value)) + "]"


def _offset(content: bytes, line: int, column: int) -> int:
    """Return where a place that ast names, a line from 1 and a column in UTF-8 bytes, is in `content`."""
    lines = content.splitlines(keepends=True)
    mark = len(codecs.BOM_UTF8) if line == 1 and content.startswith(codecs.BOM_UTF8) else 0
    return sum(map(len, lines[: line - 1])) + column + mark


def _newline(content: bytes) -> bytes:
    return b"\r\n" if b"\r\n" in content else b"\n"
