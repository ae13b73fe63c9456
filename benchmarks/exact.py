"""Write down every number that training and inference give, and compare them with those of other code.

    python -m benchmarks.exact record numbers.json    # runs everything, writes what came out
    python -m benchmarks.exact compare numbers.json   # runs it again, says what differs; exit code 1 if anything does

For changes that must not move a number. It knows `dsctl` by its command line alone, so that names and places inside may
change, and runs it on tiny models, on one thread of the CPU. Recorded are losses, learning rates and gradient norms to
the last bit, and digests of all saved tensors, cached samples and pixels; not recorded are times, paths and memory. Two
recordings of the same code on the same machine are the same file. Another version of torch, or another processor, can
give other numbers for the same code: record before the change and compare after it on one machine.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.exact_cases import MODELS, Case, cases
from benchmarks.exact_materials import write_materials
from benchmarks.exact_read import read_output

# Read when torch and the libraries of the hubs are imported, so set before dsctl is.
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DSCTL_SKIP_DOWNLOAD": "1",
}
CLEARED = ("DSCTL_", "DIFFSYNTH_", "ACCELERATE_")
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "Pillow", "numpy")
LINES_OF_A_CASE = 5


@contextmanager
def work_folder() -> Iterator[Path]:
    """Make a folder that is removed again the current one, so that paths in commands can be relative."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="numbers-") as name:
        os.chdir(name)
        try:
            yield Path(name).resolve()
        finally:
            os.chdir(before)


def run_command(words: Sequence[str]) -> tuple[int, str]:
    """Run `dsctl` with `words` and return its exit code and what it printed."""
    from dsctl.app import main

    printed, said = io.StringIO(), io.StringIO()
    own = os.dup(1)
    os.dup2(2, 1)  # for the processes that a command starts: they know nothing of what `print` goes to
    try:
        with redirect_stdout(printed), redirect_stderr(said):
            code = main([*words, "--json", "--quiet"])
    finally:
        os.dup2(own, 1)
        os.close(own)
    return code, printed.getvalue() if printed.getvalue().strip() else said.getvalue()


def run_case(case: Case, folder: Path) -> dict[str, Any]:
    """Run a case and return what it left behind; of one that fails, the exit code and the message."""
    code, printed = run_command(case.words)
    last = (printed.strip().splitlines() or [""])[-1]
    if code != 0:
        problem = json.loads(last)["error"] if last.startswith("{") else last
        return {"exit": code, "error": problem.replace(f"{folder}/", "").replace(str(folder), ".")}
    try:
        return {"exit": code, "files": read_output(Path(case.output))}
    except (OSError, ValueError, KeyError) as error:  # a format that is another one now
        return {"exit": code, "unreadable": f"{type(error).__name__}: {error}"}


def record(models: Sequence[str]) -> dict[str, Any]:
    """Run every case of `models` and return what each gave."""
    for name in [name for name in os.environ if name.startswith(CLEARED)]:
        del os.environ[name]
    os.environ.update(SETTINGS)
    code, printed = run_command(["models", "show", "tiny"])
    if code != 0:
        raise SystemExit(f"dsctl models show tiny: {printed}")
    embedded = Path(json.loads(printed)["path"])
    found: dict[str, Any] = {}
    with work_folder() as folder:
        for model in models:
            materials = write_materials(model, embedded)
            for case in cases(materials):
                began = time.perf_counter()
                name = f"{model}/{case.name}"
                found[name] = run_case(case, folder)
                outcome = found[name].get("error") or found[name].get("unreadable") or ""
                print(f"{time.perf_counter() - began:6.1f} s  {name}  {outcome}", file=sys.stderr, flush=True)
            shutil.rmtree(materials.folder)
    return {"about": about(), "cases": found}


def about() -> dict[str, str]:
    """Return what numbers may depend on beside the code."""
    machine = {"python": platform.python_version(), "machine": platform.machine(), "processor": processor()}
    return {**machine, **{name: version(name) for name in LIBRARIES}}


def processor() -> str:
    """Return what the processor can do, by the name that torch has for it."""
    import torch

    return torch.backends.cpu.get_cpu_capability()


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every plain value in a structure with the path to it; an empty list or object is a value too."""
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from flatten(each, f"{path} > {name}" if path else name)
    elif isinstance(value, list) and value:
        for number, each in enumerate(value):
            yield from flatten(each, f"{path}[{number}]")
    else:
        yield path, value


def compare(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[str]]:
    """Return what differs between two recordings, by case."""
    before, after = old["cases"], new["cases"]
    found = {name: ["is missing now"] for name in before if name not in after}
    found |= {name: ["was not there before"] for name in after if name not in before}
    for name in before:
        if name in after and (lines := list(_differences(before[name], after[name]))):
            found[name] = lines
    return found


def _differences(old: Any, new: Any) -> Iterator[str]:
    before, after = dict(flatten(old)), dict(flatten(new))
    for path in [*before, *(path for path in after if path not in before)]:
        if path not in after:
            yield f"{path}: was {_readable(before[path])}, is not there now"
        elif path not in before:
            yield f"{path}: is {_readable(after[path])}, was not there before"
        elif before[path] != after[path] or type(before[path]) is not type(after[path]):
            yield f"{path}: was {_readable(before[path])}, is {_readable(after[path])}"


def _readable(value: Any) -> str:
    if isinstance(value, str) and value.lstrip("-").startswith("0x"):
        return repr(float.fromhex(value))
    return value[:16] if isinstance(value, str) and len(value) == 64 else repr(value)


def report(found: dict[str, list[str]], count: int, *, every_line: bool = False) -> str:
    """Return the differences as text, of each case the first few."""
    lines = []
    for name, differences in found.items():
        shown = differences if every_line else differences[:LINES_OF_A_CASE]
        lines += [name, *(f"    {line}" for line in shown)]
        if len(differences) > len(shown):
            lines.append(f"    and {len(differences) - len(shown)} more (--all shows them)")
    return "\n".join([*lines, f"{len(found)} of {count} cases differ" if found else f"{count} cases, all equal"])


def main(words: Sequence[str] | None = None) -> int:
    """Record or compare, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", choices=MODELS, action="append", help="one model; can be given several times")
    parser.add_argument("--all", action="store_true", help="show every difference, not the first few of each case")
    given = parser.parse_args(words)
    models = [name for name in MODELS if name in (given.only or MODELS)]
    file = given.file.resolve()
    if given.action == "record":
        text = json.dumps(record(models), indent=1)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")
        return 0
    old = json.loads(file.read_text(encoding="utf-8"))
    old["cases"] = {name: each for name, each in old["cases"].items() if name.partition("/")[0] in models}
    new = record(models)
    for line in _differences(old["about"], new["about"]):
        print(f"note: other numbers may come of this: {line}", file=sys.stderr)
    found = compare(old, new)
    print(report(found, len(old["cases"].keys() | new["cases"].keys()), every_line=given.all))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
