"""Makes docs/reference/python.md: the public names of dsctl_core, found without importing what defines them."""

import ast
import importlib.util
import re
from pathlib import Path

import dsctl_core
from dsctl_core.families import families

INTRODUCTION = """\
Everything here is imported from `dsctl_core`, on first use, so that `import dsctl_core` is fast and loads no torch.
The site that `make docs` builds shows signatures and whole docstrings."""


def public_names() -> dict[str, str]:
    """Return the public names and the modules that they are imported from; pipelines are those of the families."""
    names = dict(dsctl_core._PUBLIC)
    for family in families().values():
        module, _, name = family.pipeline.partition(":")
        names |= dict.fromkeys((name, *family.pipeline_aliases), module)
    return dict(sorted(names.items()))


def page() -> str:
    """Return the page, without its first line."""
    parts = ["# Python", INTRODUCTION]
    aliases = {each: f.pipeline.partition(":")[2] for f in families().values() for each in f.pipeline_aliases}
    for name, imported_from in public_names().items():
        parts.append(f"## {name}")
        if name in aliases:
            parts.append(f"Another name of [{aliases[name]}](#{aliases[name].lower()}).")
            continue
        module, node = definition(imported_from, name)
        doc = ast.get_docstring(node)
        assert doc, f"{module}.{name} has no docstring"
        parts.append(_linkless(doc.split("\n\n")[0]))
        parts.append(f"<!-- docstring of {module}.{name} -->")
    return "\n\n".join(parts)


def definition(module: str, name: str) -> tuple[str, ast.ClassDef | ast.FunctionDef]:
    """Return the module that defines `name`, following the imports of `module`, and the definition."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module and name in [alias.name for alias in node.names]:
            return definition(node.module, name)
    raise LookupError(f"{module} does not define {name}")


def _linkless(text: str) -> str:
    """Return a paragraph on one line, with what markdown would read as HTML in code marks."""
    return re.sub(r"<[^>]+>", lambda found: f"`{found[0]}`", " ".join(text.split()))
