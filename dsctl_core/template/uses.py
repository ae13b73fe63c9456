"""Which components of the pipeline a template's code reaches for, so that only those are loaded for it."""

from __future__ import annotations

import ast
from collections.abc import Collection


def components_used(source: str, names: Collection[str], model: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return which of the components `names` the first half of a template needs, and which the second.

    Every `pipe.NAME`, and every such word as text, counts where it stands: in `forward` of the class `model` for the
    second half, in its `process_inputs` for the first, anywhere else for both.
    """
    first: dict[str, None] = {}
    second: dict[str, None] = {}
    for name, where in _mentions(ast.parse(source), model):
        if name in names:
            if where != "forward":
                first[name] = None
            if where != "process_inputs":
                second[name] = None
    return tuple(first), tuple(second)


def _mentions(tree: ast.AST, model: str, where: str = "") -> list[tuple[str, str]]:
    """Return each attribute name and text in `tree` with the method of the class `model` that it stands in, or ""."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Attribute):
            found.append((node.attr, where))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append((node.value, where))
        own = where
        if isinstance(node, ast.FunctionDef) and isinstance(tree, ast.ClassDef) and tree.name == model:
            own = node.name if node.name in ("process_inputs", "forward") else ""
        found += _mentions(node, model, own)
    return found
