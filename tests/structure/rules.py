"""Who may import whom and who may say what: rules as functions of source text, so that each can be shown to fail."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate", "safetensors"}
HEAVY |= {"pandas", "pyarrow", "numpy", "PIL", "av", "huggingface_hub", "modelscope", "modelscope_hub"}

# Inside dsctl_core a module may import from its own layer and those above it in this list.
LAYERS = (
    ("errors", "gc_pause", "random", "progress", "version", "assets"),
    ("files",),
    ("options", "family"),
    ("data", "hub", "scheduler"),
    ("checkpoint",),
    ("cache", "memory"),
    ("lora",),
    ("units", "placement", "denoising", "pipeline"),
    ("media", "losses"),
    ("families", "control"),
    ("stages",),
    ("report", "template"),
    ("training",),
    ("commands",),
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}

# What `dsctl --help` and reading options import, so what must stay free of heavy libraries.
LIGHT = re.compile(
    r"dsctl/.*|dsctl_core/(__init__|gc_pause|errors|family|progress|version)\.py|dsctl_core/options/.*"
    r"|dsctl_core/families/__init__\.py|dsctl_core/families/\w+/(__init__|family)\.py"
)

Sources = dict[str, str]  # path in the repository -> text


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
            continue
        yield child
        yield from _executed(child, functions=functions)


def upward_imports(sources: Sources) -> list[str]:
    """List imports of `dsctl` by `dsctl_core`, of a later layer, and relative ones; and modules of no layer."""
    problems = []
    for path, text in sources.items():
        package, _, inside = path.partition("/")
        own = _layer(inside) if package == "dsctl_core" else len(LAYERS)
        if own is None:
            problems.append(f"{path} is in no layer: add it to LAYERS in tests/structure/rules.py")
            continue
        for name in imports(text):
            first, _, rest = name.partition(".")
            if not first:
                problems.append(f"{path} imports {name}: write the absolute name")
            elif first == "dsctl" and package == "dsctl_core":
                problems.append(f"{path} imports {name}: the library does not know the command line")
            elif first in ("tests", "benchmarks", "examples"):
                problems.append(f"{path} imports {name}, which is not installed")
            elif first == "dsctl_core" and package == "dsctl_core" and rest:
                other = _layer(rest)
                if other is not None and other > own:
                    problems.append(f"{path} imports {name}, which is of a later layer")
    return problems


def _layer(inside: str) -> int | None:
    """Return the layer of a path or dotted name inside dsctl_core; its `__init__` may name everything."""
    first = re.split(r"[/.]", inside)[0]
    return len(LAYERS) if first == "__init__" else LAYER_OF.get(first)


def heavy_imports(sources: Sources) -> list[str]:
    """List the light modules that import a heavy library when they are imported."""
    return [
        f"{path} imports {name} at module level: import it where it is used"
        for path, text in sources.items()
        if LIGHT.fullmatch(path)
        for name in imports(text, on_import=True)
        if name.split(".")[0] in HEAVY
    ]


def family_words(sources: Sources) -> set[str]:
    """Return the first word of every family's folder: `qwen` of `families/qwen_image`."""
    folders = (re.fullmatch(r"dsctl_core/families/(\w+)/family\.py", path) for path in sources)
    return {_words(found[1])[0] for found in folders if found}


def named_families(sources: Sources, families: set[str]) -> list[str]:
    """List identifiers and strings outside `families/` that name a family; a docstring may give an example."""
    problems = []
    for path, text in sources.items():
        if path.startswith("dsctl_core/families/"):
            continue
        for line, said in _said(ast.parse(text)):
            if families & set(_words(said)):
                problems.append(f"{path}:{line} names a family: {said[:60]!r}")
    return problems


def _words(said: str) -> list[str]:
    """Split at punctuation, at capitals inside a word and before digits: `QwenImage2` is qwen, image."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", said)]


def _said(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every identifier and of every string that is not a docstring."""
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements:
            yield line, node.value
        for field in ("id", "attr", "name", "arg", "module", "asname"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield line, value
