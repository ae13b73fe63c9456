"""Which module imports which: a graph of source text, and the circles in it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

Sources = dict[str, str]  # path in the repository -> text
Graph = dict[str, set[str]]  # a node -> the nodes that it imports


def read_sources(repository: Path) -> Sources:
    """Return the text of every module of both packages."""
    paths = sorted(path for package in ("dsctl", "dsctl_core") for path in (repository / package).rglob("*.py"))
    return {path.relative_to(repository).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def imports(text: str, *, on_import: bool = False) -> list[str]:
    """Return the dotted names that `text` imports; with `on_import`, only those that importing it executes.

    What only a type checker sees is no import: an annotation couples nothing.
    """
    found: list[str] = []
    for node in _executed(ast.parse(text), functions=not on_import):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [f"{module}.{alias.name}" for alias in node.names]
    return found


def _executed(node: ast.AST, *, functions: bool) -> Iterator[ast.AST]:
    """Yield what can run: not what only a type checker sees, and the bodies of functions if `functions`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not functions:
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from _executed(other, functions=functions)
            continue
        yield child
        yield from _executed(child, functions=functions)


def missing_imports(sources: Sources) -> list[str]:
    """List imports of modules of our packages that are not there; one inside a function shows only when it runs."""
    modules = {module_name(path).removesuffix(".__init__") for path in sources}
    packages = {name.split(".")[0] for name in modules}
    problems = []
    for path, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            gone = [name for name in named if name.split(".")[0] in packages and name not in modules]
            problems += [f"{path} imports {name}, which is not there" for name in gone]
    return problems


def module_graph(sources: Sources) -> Graph:
    """Return the modules of `sources`, by dotted name (a package by that of its `__init__`), and what each imports.

    An import inside a function counts. A name that is imported from a module is an import of that module.
    """
    modules = {module_name(path): text for path, text in sources.items()}
    graph: Graph = {}
    for name, text in modules.items():
        targets = {_nearest(imported, modules) for imported in imports(text)}
        graph[name] = {target for target in targets if target is not None} - {name}
    return graph


def module_name(path: str) -> str:
    """Return `dsctl_core.losses.sft` of dsctl_core/losses/sft.py, and `dsctl_core.losses.__init__` of a package."""
    return path.removesuffix(".py").replace("/", ".")


def _nearest(imported: str, modules: Mapping[str, str]) -> str | None:
    """Return the module that a dotted name is, or is in; None for one of a library."""
    parts = imported.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        for candidate in (name, f"{name}.__init__"):
            if candidate in modules:
                return candidate
    return None


def find_cycles(sources: Sources) -> list[str]:
    """List the circles of imports among what stands side by side in a folder: modules, packages, and both.

    A circle of modules is one of their parents in the innermost folder that holds them all, so none is missed, and a
    circle of packages is found where no module is in one. Each is a line with the imports that make it.
    """
    graph = module_graph(sources)
    folders = {name.rpartition(".")[0] for name in graph}
    folders |= {".".join(each.split(".")[:end]) for each in folders for end in range(1, each.count(".") + 1)}
    problems = []
    for folder in sorted(folders):
        edges = _edges_inside(graph, folder)
        siblings: Graph = {}
        for one, other in edges:
            siblings.setdefault(one, set()).add(other)
            siblings.setdefault(other, set())
        for circle in strongly_connected(siblings):
            why = [text for (one, other), texts in edges.items() if {one, other} <= circle for text in texts]
            problems.append(f"{folder}: {', '.join(sorted(circle))} import one another: {'; '.join(sorted(why))}")
    return problems


def _edges_inside(graph: Graph, folder: str) -> dict[tuple[str, str], list[str]]:
    """Return which child of `folder` imports which other, with the modules by which it does."""
    prefix = f"{folder}."
    edges: dict[tuple[str, str], list[str]] = {}
    for module, targets in graph.items():
        for target in targets:
            if module.startswith(prefix) and target.startswith(prefix):
                one, other = (name.removeprefix(prefix).split(".")[0] for name in (module, target))
                if one != other:
                    edges.setdefault((one, other), []).append(f"{module} -> {target}")
    return edges


def strongly_connected(graph: Graph) -> list[set[str]]:
    """Return the sets of at least two nodes each of which leads to every other."""
    reached = {node: _reached(graph, node) for node in graph}
    left, found = set(graph), []
    for node in sorted(graph):
        if node in left:
            component = {other for other in reached[node] if node in reached[other]} | {node}
            left -= component
            if len(component) > 1:
                found.append(component)
    return found


def _reached(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for other in graph[waiting.pop()] - found:
            found.add(other)
            waiting.append(other)
    return found
