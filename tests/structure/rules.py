"""Who may import whom and who may say what: rules as functions of source text, so that each can be shown to fail."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.structure.graph import Sources, imports

HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate", "safetensors"}
HEAVY |= {
    "pandas",
    "pyarrow",
    "numpy",
    "PIL",
    "av",
    "jinja2",
    "filelock",
    "huggingface_hub",
    "modelscope",
    "modelscope_hub",
    "starlette",
    "uvicorn",
}

# The packages and modules of dsctl_core: each imports from itself and from those before it.
ORDER = (
    "errors",
    "gc_pause",
    "random",
    "readable",
    "progress",
    "version",
    "assets",
    "files",
    "remote",
    "options",
    "family_parts",
    "family",
    "scheduler",
)
ORDER += (
    "data",
    "hub",
    "memory",
    "checkpoint",
    "cache",
    "lora",
    "units",
    "side_network",
    "placement",
    "denoising",
    "pixels",
    "pipeline",
    "media",
    "losses",
    "control",
)
ORDER += ("families", "imports", "stages", "report", "template", "training", "commands")
PLACE = {name: number for number, name in enumerate(ORDER)}

# What the command line may have of the library: what its commands do, and what both sides speak in.
SPOKEN = {"errors", "gc_pause", "options", "progress", "readable", "version"}
# Who starts the processes of a command knows how they are started, before there is a command to call.
ALSO = {"dsctl/launch.py": "training.distributed.launch"}

# What `dsctl --help` and reading options import, so what must stay free of heavy libraries.
LIGHT = re.compile(
    r"dsctl/.*|dsctl_core/(__init__|gc_pause|errors|family|family_parts|progress|readable|version)\.py|dsctl_core/options/.*"
    r"|dsctl_core/families/__init__\.py|dsctl_core/families/\w+/(__init__|family)\.py"
)

# Who reads what was written elsewhere; the processes of a command read what those that they started have written.
READERS = {"dsctl_core/files/json.py", "dsctl_core/options/config_file.py", "dsctl/processes.py"}
UNCHECKED = {"json.load", "json.loads", "tomllib.load", "tomllib.loads", "pickle.load", "pickle.loads", "torch.load"}

# What gives a family away without its name: the layouts and parts that only one model has.
SIGNS = ("two streams", "double blocks", "single blocks", "mistral", "klein")


def imports_out_of_order(sources: Sources) -> list[str]:
    """List imports of `dsctl` by `dsctl_core`, of a later package in ORDER, relative ones, and packages not in it."""
    problems = []
    for path, text in sources.items():
        package, _, inside = path.partition("/")
        own = _place(inside) if package == "dsctl_core" else len(ORDER)
        if own is None:
            problems.append(f"{path} has no place: add it to ORDER in tests/structure/rules.py")
            continue
        for name in imports(text):
            first, _, rest = name.partition(".")
            if not first:
                problems.append(f"{path} imports {name}: write the absolute name")
            elif first == "dsctl" and package == "dsctl_core":
                problems.append(f"{path} imports {name}: the library does not know the command line")
            elif first in ("tests", "benchmarks", "examples"):
                problems.append(f"{path} imports {name}, which is not installed")
            elif first == "dsctl_core" and package == "dsctl_core":
                other = _place(rest)
                if other is None:
                    problems.append(f"{path} imports {name}: import it from the module that defines it")
                elif other > own:
                    problems.append(f"{path} imports {name}, which comes later in ORDER")
    return problems


def _place(inside: str) -> int | None:
    """Return the place in ORDER of a path or dotted name inside dsctl_core; its `__init__` may name everything."""
    first = re.split(r"[/.]", inside)[0]
    return len(ORDER) if first == "__init__" else PLACE.get(first)


def imports_past_commands(sources: Sources) -> list[str]:
    """List what `dsctl` imports of the library beside dsctl_core.commands, and commands that call no namesake there."""
    problems = []
    for path, text in sources.items():
        if not path.startswith("dsctl/"):
            continue
        inside = [name.partition(".")[2] for name in imports(text) if name.split(".")[0] == "dsctl_core"]
        for name in inside:
            also = ALSO.get(path)
            if name.split(".")[0] not in {"commands", *SPOKEN} and not (also and f"{name}.".startswith(f"{also}.")):
                problems.append(f"{path} imports dsctl_core.{name}: call a function of dsctl_core.commands instead")
        command = re.fullmatch(r"dsctl/commands/(\w+)\.py", path)
        if (
            command
            and command[1] != "__init__"
            and not any(f"{n}.".startswith(f"commands.{command[1]}.") for n in inside)
        ):
            problems.append(f"{path} does not call dsctl_core.commands.{command[1]}")
    return problems


def heavy_imports(sources: Sources) -> list[str]:
    """List the light modules that import a heavy library when they are imported."""
    return [
        f"{path} imports {name} at module level: import it where it is used"
        for path, text in sources.items()
        if LIGHT.fullmatch(path)
        for name in imports(text, on_import=True)
        if name.split(".")[0] in HEAVY
    ]


def unchecked_reading(sources: Sources) -> list[str]:
    """List calls that read JSON, TOML or a pickle past the readers that check what they read."""
    problems = []
    for path, text in sources.items():
        if path in READERS:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in UNCHECKED:
                problems.append(f"{path}:{node.lineno} calls {ast.unparse(node.func)}: read it by dsctl_core.files")
    return problems


def family_words(sources: Sources) -> set[str]:
    """Return the first word of every family's folder, or two if it is a letter: `qwen`, `z image`."""
    folders = (re.fullmatch(r"dsctl_core/families/(\w+)/family\.py", path) for path in sources)
    named = (_words(found[1]) for found in folders if found)
    return {" ".join(words[: 2 if len(words[0]) == 1 else 1]) for words in named}


def named_families(sources: Sources, families: set[str]) -> list[str]:
    """List identifiers and strings outside `families/` that name a family or hold one of SIGNS.

    A docstring may give an example.
    """
    problems = []
    for path, text in sources.items():
        if path.startswith("dsctl_core/families/"):
            continue
        for line, said in _said(ast.parse(text)):
            words = " ".join(_words(said))
            if any(f" {sign} " in f" {words} " for sign in (*families, *SIGNS)):
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
