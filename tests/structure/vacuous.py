"""Finds tests that may assert nothing: all that they assert stands in loops, and the loops may have no rounds."""

from __future__ import annotations

import ast
from collections.abc import Iterator

LOOPS = (ast.For, ast.AsyncFor, ast.While)
SAME_LENGTH = ("enumerate", "sorted", "list", "tuple", "set", "reversed", "iter")
SAME_LENGTH_METHODS = ("items", "keys", "values", "copy")
ASSERTING = ("raises", "warns", "fail", "fault", "refused", "try_each", "check_call")
Names = dict[str, ast.expr]


def never_empty(node: ast.expr, names: Names) -> bool:
    """Say whether an expression certainly has an element, given what names are bound to."""
    match node:
        case ast.List(elts=elements) | ast.Tuple(elts=elements) | ast.Set(elts=elements):
            return any(not isinstance(e, ast.Starred) or never_empty(e.value, names) for e in elements)
        case ast.Dict(keys=keys):
            return any(key is not None for key in keys)
        case ast.Constant(value=str() | bytes() as text):
            return len(text) > 0
        case ast.Name(id=name):
            rest = {other: value for other, value in names.items() if other != name}
            return name in names and never_empty(names[name], rest)
        case ast.BinOp(left=left, op=ast.Add() | ast.BitOr(), right=right):
            return never_empty(left, names) or never_empty(right, names)
        case ast.ListComp(generators=[one]) | ast.SetComp(generators=[one]) | ast.GeneratorExp(generators=[one]):
            return not one.ifs and never_empty(one.iter, names)
        case ast.DictComp(generators=[one]):
            return not one.ifs and never_empty(one.iter, names)
        case ast.Call(func=ast.Name(id="range"), args=bounds) if all(isinstance(b, ast.Constant) for b in bounds):
            return len(range(*(b.value for b in bounds))) > 0  # type: ignore[attr-defined]
        case ast.Call(func=ast.Name(id=name), args=[first, *_]) if name in SAME_LENGTH:
            return never_empty(first, names)
        case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in SAME_LENGTH_METHODS:
            return never_empty(value, names)
        case ast.Call(func=ast.Name(id="zip"), args=sides, keywords=keywords):
            strict = any(k.arg == "strict" and isinstance(k.value, ast.Constant) and k.value.value for k in keywords)
            return (any if strict else all)(never_empty(side, names) for side in sides)
        case ast.Call(func=ast.Name(id="product") | ast.Attribute(attr="product"), args=sides):
            return all(never_empty(side, names) for side in sides)
    return False


def bound(body: list[ast.stmt]) -> Names:
    """Return what the names of a block are bound to, of those that are bound once."""
    found: dict[str, list[ast.expr]] = {}
    for statement in body:
        for node in ast.walk(statement):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            value = getattr(node, "value", None)
            for target in targets:
                if isinstance(target, ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign) and value is not None:
                    found.setdefault(target.id, []).append(value)
                elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                    for each, part in zip(target.elts, value.elts, strict=False):
                        if isinstance(each, ast.Name):
                            found.setdefault(each.id, []).append(part)
    return {name: values[0] for name, values in found.items() if len(values) == 1}


def asserts(node: ast.AST, names: Names, helpers: dict[str, bool]) -> bool | None:
    """Say whether this very node asserts for certain, or calls what does; None if it asserts nothing."""
    if isinstance(node, ast.Assert):
        everything = isinstance(node.test, ast.Call) and getattr(node.test.func, "id", "") == "all"
        return not (everything and not never_empty(node.test.args[0], names))  # type: ignore[attr-defined]
    if not isinstance(node, ast.Call):
        return None
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    if name in helpers:
        return helpers[name]
    return True if name in ASSERTING or name.startswith("assert_") else None


def rounds(node: ast.AST, names: Names) -> bool:
    """Say whether a node's body runs at least once, as far as can be told."""
    return not isinstance(node, LOOPS) or (isinstance(node, ast.For) and never_empty(node.iter, names))


def certain(node: ast.AST, names: Names, helpers: dict[str, bool]) -> Iterator[bool]:
    """Give, for each assertion under `node`, whether it is made for certain: in no loop that may have no rounds."""
    made = asserts(node, names, helpers)
    if made is not None:
        yield made
        return
    inside = rounds(node, names)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            continue
        head = isinstance(node, LOOPS) and child in (getattr(node, "iter", None), getattr(node, "test", None))
        yield from (each and (inside or head) for each in certain(child, names, helpers))


def may_assert_nothing(text: str) -> list[str]:
    """Return the tests of a module that assert something, but nothing for certain."""
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    outer = bound([node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)])
    helpers: dict[str, bool] = {}
    for function in functions:
        if not function.name.startswith("test_"):
            names = {**outer, **bound(function.body)}
            made = [each for statement in function.body for each in certain(statement, names, helpers)]
            helpers.update({function.name: any(made)} if made else {})
    found = []
    for function in functions:
        if function.name.startswith("test_"):
            names = {**outer, **bound(function.body)}
            made = [each for statement in function.body for each in certain(statement, names, helpers)]
            if made and not any(made):
                found.append(function.name)
    return found
