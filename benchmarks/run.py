"""Measure dsctl beside plain diffusers and peft, side by side in one run. See README.md.

Both sides stay loaded in processes of their own and take turns, round by round, so that whatever else the machine does
meets both alike; what is compared is the ratio of each pair of rounds.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
ASSETS = REPOSITORY / "dsctl_core" / "assets"
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "Pillow")
MARKS = ("<!-- results: written by benchmarks/run.py -->", "<!-- end of results -->")
MEGABYTE = 10**6


@dataclass(frozen=True)
class Result:
    """One comparison: the seconds, also of CPU time, of each round and the peak memory (bytes) of both sides."""

    name: str
    unit: str
    ours: list[float]
    plain: list[float]
    ours_memory: int
    plain_memory: int
    ours_device_memory: int = 0
    plain_device_memory: int = 0
    ours_cpu: list[float] = field(default_factory=list)
    plain_cpu: list[float] = field(default_factory=list)

    def ratios(self) -> list[float]:
        """Return ours / plain for each pair of rounds."""
        return [a / b for a, b in zip(self.ours, self.plain, strict=True)]


class Side:
    """A worker process."""

    def __init__(self, module: str, case: str, settings: dict[str, Any], folder: str) -> None:
        self.name = f"{module} {case}"
        self.log = Path(folder, f"{module}.{case}.log")
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, case, json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=REPOSITORY,
            )
        self.facts = self._answer()

    def round(self) -> dict[str, Any]:
        """Have the worker do one round, and return what it tells of it."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def stop(self) -> int:
        """End the worker and return the most memory that it had resident, in bytes."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.returncode, memory, _ = finish(self.process.pid)
        return memory

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} failed:\n{self.log.read_text(encoding='utf-8')[-4000:]}")
        return json.loads(line)


def finish(pid: int) -> tuple[int, int, float]:
    """Wait for a process; return its exit code, its peak resident memory in bytes and its CPU seconds."""
    _, status, usage = os.wait4(pid, 0)
    scale = 1 if sys.platform == "darwin" else 1024
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * scale, usage.ru_utime + usage.ru_stime


def compare_commands(name: str, ours: Sequence[str], plain: Sequence[str], rounds: int) -> Result:
    """Compare the CPU time of two commands of this Python, in turns."""
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    memory = {"ours": 0, "plain": 0}
    # An installed package has its bytecode; the first round writes it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for number in range(rounds + 1):
        for side, command in in_turn({"ours": ours, "plain": plain}, number):
            words = [sys.executable, *command]
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, cwd=REPOSITORY, env=environment)
            process.returncode, used, cpu = finish(process.pid)
            if process.returncode != 0:
                raise SystemExit(f"python {' '.join(command)} failed with exit code {process.returncode}")
            memory[side] = max(memory[side], used)
            if number > 0:  # the first round fills the disk cache
                seconds[side].append(cpu)
    return Result(name, "CPU s", seconds["ours"], seconds["plain"], memory["ours"], memory["plain"])


def compare_work(name: str, case: str, unit: str, settings: dict[str, Any], rounds: int) -> tuple[Result, Side]:
    """Compare `case` of ours.py and plain.py round by round, and check that both did the same work."""
    with tempfile.TemporaryDirectory() as folder:
        sides = {side: Side(f"benchmarks.{side}", case, settings, folder) for side in ("ours", "plain")}
        result = take_turns(name, unit, settings["steps"] if case == "train" else 1, sides, rounds)
    return result, sides["ours"]


def take_turns(name: str, unit: str, per_round: int, sides: dict[str, Side], rounds: int) -> Result:
    """Do the rounds and end the workers; the seconds are for one of the `per_round` steps of a round."""
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    cpu: dict[str, list[float]] = {"ours": [], "plain": []}
    device_memory = {"ours": 0, "plain": 0}
    for number in range(rounds + 1):
        facts = {}
        for side, worker in in_turn(sides, number):
            facts[side] = worker.round()
            device_memory[side] = facts[side]["device_bytes"]
            if number > 0:  # the first round warms up
                seconds[side].append(facts[side]["seconds"] / per_round)
                cpu[side].append(facts[side]["cpu_seconds"] / per_round)
        require_same_work(name, facts["ours"], facts["plain"])
    memory = {side: worker.stop() for side, worker in sides.items()}
    return Result(name, unit, *seconds.values(), *memory.values(), *device_memory.values(), *cpu.values())


def in_turn(sides: dict[str, Any], number: int) -> list[tuple[str, Any]]:
    """Return both sides, each going first in every other round."""
    pairs = list(sides.items())
    return pairs if number % 2 == 0 else pairs[::-1]


def require_same_work(name: str, ours: dict[str, Any], plain: dict[str, Any]) -> None:
    """Refuse a comparison of unlike things: other trained parameters, or another picture for the same seed."""
    if ours.get("trained") != plain.get("trained"):
        raise SystemExit(f"{name}: {ours.get('trained')} parameters are trained here, {plain.get('trained')} there")
    if "picture" in ours:
        pictures = (base64.b64decode(facts["picture"]) for facts in (ours, plain))
        difference = max(abs(a - b) for a, b in zip(*pictures, strict=True))
        if difference > 1:
            raise SystemExit(f"{name}: the two pictures of a seed differ by {difference} of 255")


def describe_machine(worker: Side | None) -> dict[str, Any]:
    """Return what the numbers depend on."""
    facts = {} if worker is None else worker.facts
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "device": facts.get("device", "cpu"),
        "threads": facts.get("threads"),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def processor() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def as_markdown(machine: dict[str, Any], results: list[Result]) -> str:
    """Return the results as docs/performance.md shows them."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    threads = f", {machine['threads']} threads" if machine["threads"] else ""
    lines = [
        f"Measured on {machine['date']}: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB; models on {machine['device']}{threads}, float32; "
        f"load average {machine['load_before']} before the start.",
        f"{versions}.",
        "",
        "| | dsctl | beside it | ratio (middle half) | memory: dsctl | beside it | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        low, _, high = (
            quantiles(result.ratios(), n=4, method="inclusive") if len(result.ours) > 1 else (*result.ratios() * 3,)
        )
        on_device = result.plain_device_memory > 0
        ours = result.ours_device_memory if on_device else result.ours_memory
        plain = result.plain_device_memory if on_device else result.plain_memory
        lines.append(
            f"| {result.name} | {median(result.ours):.4g} {result.unit} | {median(result.plain):.4g} {result.unit} "
            f"| **{median(result.ratios()):.2f}** ({low:.2f} to {high:.2f}) "
            f"| {ours / MEGABYTE:.0f} MB | {plain / MEGABYTE:.0f} MB | **{ours / plain:.2f}** |"
        )
    lines += ["", f"Medians of {len(results[0].ours)} rounds, after one to warm up."]
    return "\n".join(lines)


def read_page(path: Path) -> tuple[str, str]:
    """Return what stands before and after the results in a page, which must have the two marks."""
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    if any(page.count(mark) != 1 for mark in MARKS):
        raise SystemExit(f"{path} should hold each of these lines once: {' '.join(MARKS)}")
    before, rest = page.split(MARKS[0])
    return before, rest.split(MARKS[1])[1]


def write_section(path: Path, text: str) -> None:
    """Replace what stands between the two marks in `path`."""
    before, after = read_page(path)
    path.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}", encoding="utf-8")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each comparison (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="training steps in a round (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--model", default=str(ASSETS / "tiny"), help="Qwen-Image folder (default: the embedded one)")
    parser.add_argument("--dataset", default=str(ASSETS / "datasets" / "robot"), help="metadata.csv and pictures")
    parser.add_argument("--size", type=int, default=96, help="height and width of its pictures (default: %(default)s)")
    parser.add_argument("--only", choices=["help", "train", "infer"], help="measure only this")
    parser.add_argument(
        "--json", type=Path, default=REPOSITORY / "build" / "benchmark.json", help="file for the numbers"
    )
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="page whose results section to write anew")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.steps < 1:
        parser.error("rounds and steps must be at least 1")
    if options.write is not None:
        read_page(options.write)  # now, not after minutes of measuring
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the files that were asked for."""
    options = parse(arguments)
    settings: dict[str, Any] = {
        "model": options.model,
        "dataset": options.dataset,
        "device": options.device,
        "height": options.size,
        "width": options.size,
        "steps": options.steps,
        "rank": 16,
        "learning_rate": 1e-4,
        "cfg_scale": 3.0,
        "inference_steps": 20,
        "prompt": "a fox on a blue background",
    }
    machine = describe_machine(None)
    results, worker = [], None
    if options.only in (None, "help"):
        torch = ["-c", "import torch"]
        for name, command in (("`dsctl --help`", ["--help"]), ("`dsctl train --help`", ["train", "--help"])):
            title = f"{name}, beside `import torch`"
            results.append(compare_commands(title, ["-m", "dsctl", *command], torch, options.rounds))
    if options.only in (None, "train"):
        for size in (1, 8):
            name = f"LoRA training step, batch of {size}"
            result, worker = compare_work(name, "train", "s", {**settings, "batch_size": size}, options.rounds)
            results.append(result)
    if options.only in (None, "infer"):
        name = f"picture of {settings['inference_steps']} steps with guidance"
        result, worker = compare_work(name, "infer", "s", settings, options.rounds)
        results.append(result)
    machine = {**describe_machine(worker), "load_before": machine["load_before"]}
    table = as_markdown(machine, results)
    print(table)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    numbers = {"machine": machine, "settings": settings, "results": [asdict(result) for result in results]}
    options.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    print(f"\nAll numbers: {options.json}", file=sys.stderr)
    if options.write is not None:
        write_section(options.write, table)
        print(f"Written: {options.write}", file=sys.stderr)


if __name__ == "__main__":
    main()
