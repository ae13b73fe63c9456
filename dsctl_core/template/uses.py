"""Find the components of the pipeline that a template's code uses, so that only those are loaded."""

from __future__ import annotations

import ast
from collections.abc import Collection


def components_used(source: str, names: Collection[str], model: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the components, of `names`, that `process_inputs` uses, and those that `forward` uses.

    `source` is the code and `model` the name of the template class. Every attribute `pipe.NAME` and every string
    "NAME" counts: inside `process_inputs` or `forward` for that method, elsewhere for both.
    """
    first: dict[str, None] = {}
    second: dict[str, None] = {}
    for name, method in _mentions(ast.parse(source), model):
        if name in names:
            if method != "forward":
                first[name] = None
            if method != "process_inputs":
                second[name] = None
    return tuple(first), tuple(second)


def reads_any_input(source: str, model: str) -> bool:
    """Return whether `process_inputs` of the class `model` may read inputs that are none of its parameters.

    It may if it has `**kwargs` that its code mentions, and if it is not in `source`, so that its code is not known.
    """
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef) and node.name == model]
    methods = [node for each in classes for node in each.body if getattr(node, "name", "") == "process_inputs"]
    if not methods or not isinstance(methods[-1], ast.FunctionDef):
        return True
    rest = methods[-1].args.kwarg
    inside = (node for statement in methods[-1].body for node in ast.walk(statement))
    return rest is not None and any(isinstance(node, ast.Name) and node.id == rest.arg for node in inside)


def _mentions(tree: ast.AST, model: str, method: str = "") -> list[tuple[str, str]]:
    """Return (name, method) for each attribute name and string in `tree`; method is "" outside of both methods."""
    mentions = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Attribute):
            mentions.append((node.attr, method))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            mentions.append((node.value, method))
        inner = method
        if isinstance(node, ast.FunctionDef) and isinstance(tree, ast.ClassDef) and tree.name == model:
            inner = node.name if node.name in ("process_inputs", "forward") else ""
        mentions += _mentions(node, model, inner)
    return mentions
